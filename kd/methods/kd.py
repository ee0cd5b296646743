"""Knowledge distillation (Hinton et al., arXiv 1503.02531; Sanh et al., arXiv 1910.01108) on the data's responses."""

from kd.config import Config
from kd.engines.student import Student
from kd.engines.teacher import Teacher
from kd.methods.distillation import Objective, PlainDistillation
from kd.methods.method import Groundwork, Targets


class KD(PlainDistillation):
    """Minimises (1 - r)·CE + r·T²·D per response token."""

    def __init__(
        self, config: Config, *, student: Student, teacher: Teacher, targets: Targets, groundwork: Groundwork
    ) -> None:
        """`targets` are the rows' own responses."""
        super().__init__(
            config,
            objective=Objective.of(config.kd, ratio=config.kd.ratio),
            student=student,
            teacher=teacher,
            targets=targets,
            groundwork=groundwork,
        )
