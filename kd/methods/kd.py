"""Knowledge distillation (Hinton et al., arXiv 1503.02531; Sanh et al., arXiv 1910.01108) on the data's responses."""

from kd.config.schema import Config
from kd.methods.distillation import Objective, PlainDistillation


class KD(PlainDistillation):
    """Minimises (1 - r)·CE + r·T²·D per response token."""

    @staticmethod
    def objective(config: Config) -> Objective:
        """D and the cross entropy, mixed by `kd.ratio`."""
        return Objective.of(config.kd, ratio=config.kd.ratio)
