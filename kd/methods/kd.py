"""Knowledge distillation (Hinton et al., arXiv 1503.02531; Sanh et al., arXiv 1910.01108) on the data's responses."""

from dataclasses import dataclass

from kd.config.fields import Probability, option
from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.losses.terms import cross_entropy
from kd.methods.base import Method, Needs
from kd.methods.distillation import DistillationSettings


@dataclass(frozen=True, kw_only=True)
class KDSettings(DistillationSettings):
    ratio: Probability = option(0.5, help="r in (1-r)·CE + r·D")


class KD(Method):
    """Minimises (1 - r)·CE + r·T²·D per response token of the data."""

    sections = {"kd": KDSettings}

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(teacher=True, rollouts=False, references=True)

    def step(self, batch: ExampleBatch) -> None:
        """One step on the references."""
        settings = self.config.section(KDSettings)
        references = self.references(batch)
        teacher = self.teacher.outputs(references)
        for micro in references.micro_batches:
            self.student.backward(
                micro,
                student_kd=settings.ratio * settings.term(teacher[micro]),
                cross_entropy=(1 - settings.ratio) * cross_entropy(micro.labels),
            )
        self.student.step()
