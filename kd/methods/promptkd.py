"""PromptKD (arXiv 2402.12842, Algorithm 1): a soft prompt adapts the teacher to the student that learns from it."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from kd.config.fields import Count, MixtureShare, NonNegativeInt, Probability, Share, option
from kd.config.schema import Config, LoraConfig, SoftPromptConfig
from kd.data.global_batch import GlobalBatch
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.losses.divergences import DivergenceName, make_divergence
from kd.losses.outputs import Outputs
from kd.losses.terms import DivergenceTerm
from kd.methods.base import Method, MethodContext, Needs, refuse_mixture_with_fixed_responses, uniform

if TYPE_CHECKING:
    from kd.models.handle import ModelContext
    from kd.models.teacher import AdaptedTeacher


PROMPT_ROWS = 2
"""A random stream beside those of `kd.methods.base`."""


@dataclass(frozen=True, kw_only=True)
class PromptSettings(SoftPromptConfig):
    regularization: Literal["linear", "constant", "none"] = option(
        "linear", help="weight of L_reg at step k of K: (K-k)/K (Eq. 3), 1, or 0"
    )
    kd_divergence: DivergenceName = option("reverse_kl", help="L_kd; reverse: KL(p(.|P,x)||q) (Eq. 1)")
    regularization_divergence: DivergenceName = option(
        "reverse_kl", help="L_reg; reverse: KL(p(.|P,x)||p(.|x)) (Eq. 2)"
    )
    student_divergence: DivergenceName = option("reverse_kl", help="L_student; reverse: KL(q||p(.|P,x)) (Eq. 4)")
    beta: Share = option(0.5, help="β of jsd in any of these three")
    alpha: MixtureShare = option(0.1, help="α of skew_kl and skew_reverse_kl in any of these three")
    student_fraction: Share = option(
        1.0, help="probability that P is tuned on the student's response to a row, not on the data's"
    )
    every: Count = option(1, help="P is tuned in every n-th step: 1, 1 + n, … (1: the paper)")
    batch_fraction: Probability = option(
        1.0, help="share of the global batch that P is tuned on; the student learns from all of it (1: the paper)"
    )


@dataclass(frozen=True, kw_only=True)
class TeacherLoraSettings(LoraConfig):
    rank: NonNegativeInt = option(
        0, help="promptkd: r of adapters that replace the soft prompt (Table 9); 0 disables them"
    )


class PromptKD(Method):
    """Tunes the soft prompt P towards the student, then the student towards p(·|P, x)."""

    sections = {"prompt": PromptSettings, "teacher_lora": TeacherLoraSettings}
    teacher: "AdaptedTeacher"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.settings = self.config.section(PromptSettings)

    @classmethod
    def create(cls, context: MethodContext) -> "PromptKD":
        mixes_data = context.config.section(PromptSettings).student_fraction < 1
        return PromptKDOnMixedResponses(context) if mixes_data else PromptKD(context)

    @classmethod
    def needs(cls, config: Config) -> Needs:
        only_rollouts = config.section(PromptSettings).student_fraction == 1
        return Needs(teacher=True, rollouts=True, references=not only_rollouts)

    @classmethod
    def check(cls, config: Config) -> None:
        settings, lora = config.section(PromptSettings), config.section(TeacherLoraSettings)
        if lora.is_on and settings.regularization != "none":
            raise UserError(
                "teacher_lora starts as the plain teacher, which leaves L_reg without a purpose (Table 9); set"
                " prompt.regularization=none"
            )
        refuse_mixture_with_fixed_responses(config, field="prompt.student_fraction", fraction=settings.student_fraction)

    @classmethod
    def teacher_slots(cls, config: Config) -> int:
        return 0 if config.section(TeacherLoraSettings).is_on else config.section(PromptSettings).length

    @classmethod
    def load_teacher(cls, context: "ModelContext") -> "AdaptedTeacher":
        from kd.models.teacher import LoraTeacher, PromptedTeacher

        prompt, lora = context.config.section(PromptSettings), context.config.section(TeacherLoraSettings)
        if lora.is_on:
            return LoraTeacher(context, lora=lora, learning_rate=prompt.learning_rate)
        return PromptedTeacher(context, prompt=prompt)

    def step(self, batch: ExampleBatch) -> None:
        """One iteration of Algorithm 1."""
        tunes = self.tunes_prompt(batch.step)
        rollouts = self.rollout(batch, keep_hidden=tunes)  # y ~ q(·|x)
        if tunes:
            tuned_on = self.part_for_prompt(rollouts, step=batch.step)
            self.tune_prompt(tuned_on, weight=self.regularization_weight(batch.step))
        self.train_student(rollouts)

    def tunes_prompt(self, step: int) -> bool:
        """Whether P is tuned in a step, which counts from 1."""
        return (step - 1) % self.settings.every == 0

    def part_for_prompt(self, batch: GlobalBatch, *, step: int) -> GlobalBatch:
        """The rows that P is tuned on: the same ones, and about as many on each rank, for any number of ranks.

        They follow each other in the order of the global batch, which the ranks take in turn, from a random position.

        Raises:
            EmptyBatchError: on all ranks, when these rows have no response token.
        """
        if self.settings.batch_fraction == 1:
            return batch
        num_rows, size = self.config.schedule.global_batch, self.world.size
        start = int(num_rows * uniform(self.config.run.seed, step, stream=PROMPT_ROWS))
        num_chosen = math.ceil(num_rows * self.settings.batch_fraction)
        chosen = [
            row
            for index, row in enumerate(batch.sequences)
            if (index * size + self.world.rank - start) % num_rows < num_chosen
        ]
        first = batch.sequences[0]
        # A rank without such a row runs the same passes, on a row without a response.
        without = [replace(first, response_ids=first.response_ids[:0])]
        return self.batcher(chosen or without, student_hidden=batch.student_hidden)

    def tune_prompt(self, rollouts: GlobalBatch, *, weight: float) -> None:
        """Eq. 3: L_kd + weight · L_reg; only P has a gradient."""
        student = self.student.outputs(rollouts)
        plain = self.teacher.outputs(rollouts, prompt=False) if weight != 0 else None
        for micro in rollouts.micro_batches:
            self.teacher.backward(
                micro,
                prompt_kd=self.kd(student[micro]),
                prompt_regularization=None if plain is None else weight * self.regularization(plain[micro]),
            )
        self.teacher.step()

    def train_student(self, rollouts: GlobalBatch) -> None:
        """Eq. 4: L_student, against the updated prompt; only θ has a gradient."""
        prompted = self.teacher.outputs(rollouts)
        for micro in rollouts.micro_batches:
            self.student.backward(micro, student_kd=self.student_kd(prompted[micro]))
        self.student.step()

    def regularization_weight(self, step: int) -> float:
        """Weight of L_reg at step k of K: (K - k) / K, which is (K - 1) / K first and 0 last (Eq. 3)."""
        num_steps = self.config.schedule.steps
        weight = {"linear": (num_steps - step) / num_steps, "constant": 1.0, "none": 0.0}[self.settings.regularization]
        self.recorder.record("regularization_weight", weight)
        return weight

    def kd(self, student: Outputs) -> DivergenceTerm:
        """L_kd, KL(p(·|P, x) ‖ q) unless configured otherwise (Eq. 1)."""
        return self._term(self.settings.kd_divergence, student)

    def regularization(self, plain: Outputs) -> DivergenceTerm:
        """L_reg, KL(p(·|P, x) ‖ p(·|x)) unless configured otherwise (Eq. 2)."""
        return self._term(self.settings.regularization_divergence, plain)

    def student_kd(self, prompted: Outputs) -> DivergenceTerm:
        """L_student, KL(q ‖ p(·|P, x)) unless configured otherwise (Eq. 4)."""
        return self._term(self.settings.student_divergence, prompted)

    def _term(self, name: DivergenceName, target: Outputs) -> DivergenceTerm:
        divergence = make_divergence(name, beta=self.settings.beta, alpha=self.settings.alpha)
        return DivergenceTerm(divergence=divergence, target=target)


class PromptKDOnMixedResponses(PromptKD):
    """The ablation in which P is tuned on the data's responses to some rows; Eq. 4 keeps the student's."""

    def step(self, batch: ExampleBatch) -> None:
        """One iteration of Algorithm 1, with other responses in Eq. 3."""
        rollouts = self.rollout(batch)
        if not self.tunes_prompt(batch.step):
            self.train_student(rollouts)
            return
        fraction = self.settings.student_fraction
        mixed = [
            sampled
            if self.is_student_row(row.row_id, step=batch.step, student_fraction=fraction)
            else row.with_response()
            for row, sampled in zip(batch.examples, rollouts.sequences, strict=True)
        ]
        tuned_on = self.part_for_prompt(self.batcher(mixed), step=batch.step)
        self.tune_prompt(tuned_on, weight=self.regularization_weight(batch.step))
        self.train_student(rollouts)
