"""Sequence-level distillation (Kim and Rush, arXiv 1606.07947): the teacher's responses instead of the data's."""

from kd.config import Config
from kd.engines.student import Student
from kd.engines.teacher import Teacher
from kd.methods.distillation import Objective, PlainDistillation
from kd.methods.method import Groundwork, Targets


class SeqKD(PlainDistillation):
    """Minimises (1 - r)·CE + r·T²·D per token of responses that `launch/generate_pseudo_data.py` has written.

    With r = 0, as Kim and Rush have it, no teacher is needed any more and this is fine-tuning.
    """

    def __init__(
        self, config: Config, *, student: Student, teacher: Teacher, targets: Targets, groundwork: Groundwork
    ) -> None:
        """`targets` are the responses of data.responses."""
        super().__init__(
            config,
            objective=Objective.of(config.seqkd, ratio=config.seqkd.ratio),
            student=student,
            teacher=teacher,
            targets=targets,
            groundwork=groundwork,
        )
