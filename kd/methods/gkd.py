"""GKD (arXiv 2306.13649): the plain teacher judges the student's own responses, and the data's if wanted."""

from kd.config.schema import Config
from kd.methods.distillation import Objective, PlainDistillation


class GKD(PlainDistillation):
    """Minimises T²·D per token, and with `gkd.sft_weight` also the cross entropy on the data's responses."""

    @staticmethod
    def objective(config: Config) -> Objective:
        """D, and beside it the data's cross entropy where it has a weight."""
        return Objective.of(config.gkd, data_weight=config.gkd.sft_weight)
