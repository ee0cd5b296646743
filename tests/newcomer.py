"""A method outside the package, as a user would write it: a skew divergence whose α depends on the step."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from kd.config.fields import MixtureShare, Section, option
from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.losses.divergences import skew_kl
from kd.losses.terms import DivergenceTerm
from kd.methods.base import Method, Needs


@dataclass(frozen=True, kw_only=True)
class AnnealedSettings(Section):
    first_alpha: MixtureShare = option(0.5, help="α of skew_kl in the first step")
    last_alpha: MixtureShare = option(0.1, help="α of skew_kl in the last step")


class AnnealedSkewKD(Method):
    """Minimises KL(p‖α·p + (1 - α)·q) on rollouts; α moves linearly from its first to its last value."""

    sections = {"annealed": AnnealedSettings}

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self.settings = self.config.section(AnnealedSettings)
        self.seen_tokens = 0

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(teacher=True, rollouts=True, references=False)

    @classmethod
    def check(cls, config: Config) -> None:
        settings = config.section(AnnealedSettings)
        if settings.last_alpha > settings.first_alpha:
            raise UserError("annealed.last_alpha is larger than annealed.first_alpha; exchange them")

    def alpha(self, step: int) -> float:
        progress = (step - 1) / max(1, self.config.schedule.steps - 1)
        return self.settings.first_alpha + progress * (self.settings.last_alpha - self.settings.first_alpha)

    def step(self, batch: ExampleBatch) -> None:
        divergence = partial(skew_kl, alpha=self.alpha(batch.step))
        rollouts = self.rollout(batch)
        teacher = self.teacher.outputs(rollouts)
        for micro in rollouts.micro_batches:
            self.student.backward(micro, student_kd=DivergenceTerm(divergence=divergence, target=teacher[micro]))
        self.student.step()
        self.seen_tokens += rollouts.num_tokens
        self.recorder.record("alpha", self.alpha(batch.step))
        self.recorder.record("seen_tokens", self.seen_tokens)

    def state_dict(self) -> dict[str, Any]:
        return {"seen_tokens": self.seen_tokens}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen_tokens = state["seen_tokens"]
