"""PromptKD (arXiv 2402.12842, Algorithm 1): the teacher's prompt follows the student, the student the teacher."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kd.config.fields import DivergenceName
from kd.config.methods import PromptConfig
from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.losses.divergences import Divergence, make_divergence
from kd.losses.fused import FusedLoss
from kd.losses.terms import DivergenceTerm, Head, Term
from kd.methods.distillation import Objective
from kd.methods.method import Groundwork, Targets, WindowPlan
from kd.methods.targets import is_answered_by_student
from kd.models.student import Student
from kd.models.teacher import AdaptedTeacher
from kd.rollout.sampler import PseudoTargets
from kd.zero.recorder import StepMetrics, Stopwatch


def regularization_weight(step: int, *, num_steps: int, settings: PromptConfig) -> float:
    """Weight of L_reg at step k of K: (K - k) / K, which is (K - 1) / K first and 0 last (Eq. 3)."""
    if settings.regularization == "linear":
        return (num_steps - step) / num_steps
    return 1.0 if settings.regularization == "constant" else 0.0


class PromptKD:
    """Tunes the soft prompt P on the student's responses, then the student towards p(.|P, x)."""

    def __init__(
        self, config: Config, *, student: Student, teacher: AdaptedTeacher, targets: Targets, groundwork: Groundwork
    ) -> None:
        """`config.schedule.steps` is K, the number of steps of the whole run; `targets` are what Eq. 4 is about."""
        self._student = student
        self._teacher = teacher
        self._targets = targets
        self._groundwork = groundwork
        self._settings = config.prompt
        self._seed = config.run.seed
        self._num_steps = config.schedule.steps
        self._learning_rate = config.optimizer.learning_rate

    def step(self, window: ExampleBatch) -> StepMetrics:
        """One iteration of Algorithm 1."""
        groundwork = self._groundwork
        stopwatch = Stopwatch(groundwork.device)
        weight = regularization_weight(window.step, num_steps=self._num_steps, settings=self._settings)
        prompt_rate = groundwork.learning_rate(self._settings.learning_rate, step=window.step)
        student_rate = groundwork.learning_rate(self._learning_rate, step=window.step)

        groundwork.gather(self._student, self._teacher, stopwatch=stopwatch)
        with stopwatch.time("generation"):
            targets = self._targets(window)
        plan = groundwork.plan(targets)
        shown = self._shown_to_prompt(window, targets)
        prompt_plan = plan if shown is targets else groundwork.plan(shown)
        if 0 in (plan.mean.num_tokens, prompt_plan.mean.num_tokens):
            return groundwork.skip(stopwatch)
        # Of the frozen teacher: one gathering serves both losses.
        with self._teacher.head() as head:
            prompt_sums = self._accumulate_prompt(prompt_plan, shown, head=head, weight=weight, stopwatch=stopwatch)
            with stopwatch.time("optimizer"):
                self._teacher.step(learning_rate=prompt_rate)
            student_kd = self._accumulate_student(plan, head=head, stopwatch=stopwatch)
        with stopwatch.time("optimizer"):
            self._student.step(learning_rate=student_rate)

        return StepMetrics(
            num_tokens=plan.mean.num_tokens,
            num_sequences=groundwork.num_sequences,
            # Logged as means over the tokens of `plan`.
            token_sums={"student_kd": student_kd}
            | {
                name: total * (plan.mean.num_tokens / prompt_plan.mean.num_tokens)
                for name, total in prompt_sums.items()
            },
            values={
                "regularization_weight": weight,
                "learning_rate": student_rate,
                "prompt_learning_rate": prompt_rate,
                "grad_norm": self._student.engine.grad_norm,
                "prompt_grad_norm": self._teacher.engine.grad_norm,
            },
            stopwatch=stopwatch,
        )

    def _shown_to_prompt(self, window: ExampleBatch, targets: PseudoTargets) -> PseudoTargets:
        """What Eq. 3 is about: the student's responses, the data's, or some of both."""
        fraction = self._settings.student_fraction
        if fraction == 1:
            return targets
        return PseudoTargets(
            sequences=[
                sequence
                if is_answered_by_student(row.row_id, seed=self._seed, step=window.step, student_fraction=fraction)
                else row.with_response()
                for row, sequence in zip(window.examples, targets.sequences, strict=True)
            ]
        )

    def _accumulate_prompt(
        self, plan: WindowPlan, targets: PseudoTargets, *, head: Head, weight: float, stopwatch: Stopwatch
    ) -> dict[str, Tensor]:
        """Gradient of Eq. 3 to P; returns the window's sums of L_kd and L_reg."""
        kd_divergence = self._divergence(self._settings.kd_divergence)
        regularization_divergence = self._divergence(self._settings.regularization_divergence)
        regularizes = self._settings.regularization != "none"
        names = ["prompt_kd", "prompt_regularization"] if regularizes else ["prompt_kd"]
        sums = torch.zeros(len(names), device=self._groundwork.device)
        plain_hidden: Sequence[Tensor | None] = [None] * len(plan.batches)
        if regularizes:
            with stopwatch.time("teacher"):
                plain_hidden = plan.hidden(partial(self._teacher.hidden, condition="plain"))
        with stopwatch.time("prompt"), self._student.head() as student_head, self._teacher.window():
            guides = self._guides(plan, targets)
            for (batch, is_last), guide, plain in zip(plan, guides, plain_hidden, strict=True):
                terms = [DivergenceTerm(divergence=kd_divergence, target=student_head.project(guide))]
                if plain is not None:
                    target = head.project(plain)
                    terms.append(DivergenceTerm(divergence=regularization_divergence, target=target, weight=weight))

                def loss(prompted: Tensor, terms: Sequence[Term] = terms) -> FusedLoss:
                    return self._groundwork.loss(head.project(prompted), terms, scale=plan.mean.scale)

                sums += self._teacher.accumulate(batch, loss, is_last=is_last)
        return dict(zip(names, sums, strict=True))

    def _guides(self, plan: WindowPlan, targets: PseudoTargets) -> list[Tensor]:
        """The student's hidden states [n, H] for each micro-batch, without gradient."""
        if targets.hidden is None:
            hidden = plan.hidden(self._student.hidden)
            self._student.pause()
            return hidden
        # q_θ has not moved since it sampled: what predicted each token then is what guides now.
        kept = targets.hidden
        return [torch.cat([kept[row_id] for row_id in batch.row_ids]) for batch in plan.batches]

    def _divergence(self, name: DivergenceName) -> Divergence:
        return make_divergence(name, beta=self._settings.beta, alpha=self._settings.alpha)

    def _accumulate_student(self, plan: WindowPlan, *, head: Head, stopwatch: Stopwatch) -> Tensor:
        """Gradient of Eq. 4 to θ, against the prompt of this moment; returns the window's sum of L_student."""
        with stopwatch.time("teacher"):
            hidden = plan.hidden(partial(self._teacher.hidden, condition="adapted"))
            self._teacher.release()
        with stopwatch.time("student"), self._student.window():
            objective = Objective(divergence=self._divergence(self._settings.student_divergence))
            terms = objective.terms(plan, hidden, head=head)
            return self._groundwork.accumulate(plan, terms, student=self._student)[0]
