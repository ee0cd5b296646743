"""GKD (arXiv 2306.13649): the teacher's divergence on the student's own responses, mixed with the data's."""

from dataclasses import dataclass

from kd.config.fields import NonNegativeFloat, Share, option
from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.losses.divergences import DivergenceName
from kd.losses.terms import cross_entropy
from kd.methods.base import Method, Needs, refuse_mixture_with_fixed_responses
from kd.methods.distillation import DistillationSettings


@dataclass(frozen=True, kw_only=True)
class GKDSettings(DistillationSettings):
    divergence: DivergenceName = option("reverse_kl", help="D, as kd.divergence")
    student_fraction: Share = option(1.0, help="λ, probability that a row gets a sampled response instead of its own")
    sft_weight: NonNegativeFloat = option(0.0, help="weight of the data's cross entropy, added to D; 0 disables it")


class GKD(Method):
    """Minimises T²·D per token of rollouts, and with `gkd.sft_weight` the cross entropy on the data's responses too."""

    sections = {"gkd": GKDSettings}

    @classmethod
    def needs(cls, config: Config) -> Needs:
        settings = config.section(GKDSettings)
        mixes_data = settings.student_fraction < 1 or settings.sft_weight > 0
        return Needs(teacher=True, rollouts=settings.student_fraction > 0, references=mixes_data)

    @classmethod
    def check(cls, config: Config) -> None:
        settings = config.section(GKDSettings)
        if settings.sft_weight > 0 and config.data.responses is not None:
            raise UserError(
                "gkd.sft_weight applies to the responses of data.train, but data.responses replaces them; set only one"
            )
        if settings.student_fraction > 0:
            refuse_mixture_with_fixed_responses(
                config, field="gkd.student_fraction", fraction=settings.student_fraction
            )

    def step(self, batch: ExampleBatch) -> None:
        """One step on rollouts, and on the references where they have a weight."""
        settings = self.config.section(GKDSettings)
        rollouts = self.rollout(batch, student_fraction=settings.student_fraction)
        references = self.references(batch) if settings.sft_weight else None
        teacher = self.teacher.outputs(rollouts)
        for micro in rollouts.micro_batches:
            self.student.backward(micro, student_kd=settings.term(teacher[micro]))
        for micro in () if references is None else references.micro_batches:
            self.student.backward(micro, cross_entropy=settings.sft_weight * cross_entropy(micro.labels))
        self.student.step()
