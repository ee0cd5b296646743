"""Sequence-level distillation (Kim and Rush, arXiv 1606.07947): the teacher's responses instead of the data's."""

from kd.config.schema import Config
from kd.methods.distillation import Objective, PlainDistillation


class SeqKD(PlainDistillation):
    """Minimises (1 - r)·CE + r·T²·D per token of responses that `launch/generate_pseudo_data.py` has written.

    With r = 0, as Kim and Rush have it, no teacher is needed any more and this is fine-tuning.
    """

    @staticmethod
    def objective(config: Config) -> Objective:
        """D and the cross entropy, mixed by `seqkd.ratio`."""
        return Objective.of(config.seqkd, ratio=config.seqkd.ratio)
