"""GKD (arXiv 2306.13649): the plain teacher judges the student's own responses, and the data's if wanted."""

from kd.config import Config
from kd.engines.student import Student
from kd.engines.teacher import Teacher
from kd.methods.distillation import Objective, PlainDistillation
from kd.methods.method import Groundwork, Targets


class GKD(PlainDistillation):
    """Minimises T²·D per token, and with `gkd.sft_weight` also the cross entropy on the data's responses."""

    def __init__(
        self, config: Config, *, student: Student, teacher: Teacher, targets: Targets, groundwork: Groundwork
    ) -> None:
        """`targets` are sampled by the student for a fraction λ of the rows."""
        super().__init__(
            config,
            objective=Objective.of(config.gkd),
            student=student,
            teacher=teacher,
            targets=targets,
            groundwork=groundwork,
            data_weight=config.gkd.sft_weight,
        )
