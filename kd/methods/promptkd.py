"""PromptKD (arXiv 2402.12842, Algorithm 1): the teacher's prompt follows the student, the student the teacher."""

import torch
from torch import Tensor

from kd.config import Config, PromptConfig
from kd.data.batch import SequenceBatch
from kd.data.loader import Window
from kd.engines.student import Student
from kd.engines.teacher import Teacher
from kd.losses.divergences import DIVERGENCES, reverse_kl
from kd.losses.linear_divergence import DivergenceTerm, LinearDivergence, Projection
from kd.measurement import StepMetrics, Stopwatch
from kd.methods.method import Groundwork, Targets, WindowPlan


def regularization_weight(step: int, *, num_steps: int, settings: PromptConfig) -> float:
    """Weight of L_reg at step k of K: (K - k) / K, which is (K - 1) / K first and 0 last (Eq. 3)."""
    if settings.regularization == "linear":
        return (num_steps - step) / num_steps
    return 1.0 if settings.regularization == "constant" else 0.0


class PromptKD:
    """Tunes the soft prompt P on the student's responses, then the student towards p(.|P, x)."""

    def __init__(
        self, config: Config, *, student: Student, teacher: Teacher, targets: Targets, groundwork: Groundwork
    ) -> None:
        """`config.schedule.steps` is K, the number of steps of the whole run."""
        self._student = student
        self._teacher = teacher
        self._targets = targets
        self._groundwork = groundwork
        self._settings = config.prompt
        self._num_steps = config.schedule.steps
        self._learning_rate = config.optimizer.learning_rate

    def step(self, window: Window) -> StepMetrics:
        """One iteration of Algorithm 1."""
        groundwork = self._groundwork
        stopwatch = Stopwatch(groundwork.device)
        weight = regularization_weight(window.step, num_steps=self._num_steps, settings=self._settings)
        prompt_rate = groundwork.learning_rate(self._settings.learning_rate, step=window.step)
        student_rate = groundwork.learning_rate(self._learning_rate, step=window.step)

        with stopwatch.time("generation"):
            pseudo_targets = self._targets(window)
        plan = groundwork.plan(pseudo_targets)
        if plan.mean.num_tokens == 0:
            return StepMetrics(num_tokens=0, num_sequences=groundwork.num_sequences, stopwatch=stopwatch)
        with stopwatch.time("prompt"):
            prompt_kd, prompt_regularization = self._accumulate_prompt(plan, weight=weight)
            self._teacher.step_prompt(learning_rate=prompt_rate)
        with stopwatch.time("student"):
            student_kd = self._accumulate_student(plan)
            self._student.step(learning_rate=student_rate)

        return StepMetrics(
            num_tokens=plan.mean.num_tokens,
            num_sequences=groundwork.num_sequences,
            token_sums={
                "student_kd": student_kd,
                "prompt_kd": prompt_kd,
                "prompt_regularization": prompt_regularization,
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

    def _accumulate_prompt(self, plan: WindowPlan, *, weight: float) -> Tensor:
        """Gradient of Eq. 3 to P; returns the window's sums of L_kd and L_reg."""
        sums = torch.zeros(2, device=self._groundwork.device)
        for batch, is_last in plan:
            sums += self._accumulate_prompt_batch(batch, plan=plan, weight=weight, is_last=is_last)
        return sums

    def _accumulate_prompt_batch(
        self, batch: SequenceBatch, *, plan: WindowPlan, weight: float, is_last: bool
    ) -> Tensor:
        student_hidden = self._student.hidden(batch)
        plain_hidden = self._teacher.hidden(batch, "plain")

        def loss(prompted: Projection) -> LinearDivergence:
            plain = Projection(hidden=plain_hidden, weight=prompted.weight, bias=prompted.bias)
            with self._student.projection(student_hidden) as student:
                terms = [
                    DivergenceTerm(divergence=DIVERGENCES[self._settings.kd_divergence], target=student),
                    DivergenceTerm(
                        divergence=DIVERGENCES[self._settings.regularization_divergence], target=plain, weight=weight
                    ),
                ]
                return self._groundwork.loss(prompted, terms, scale=plan.mean.scale)

        return self._teacher.accumulate_prompt(batch, loss, is_last=is_last)

    def _accumulate_student(self, plan: WindowPlan) -> Tensor:
        """Gradient of Eq. 4 to θ, against the prompt of this moment; returns the window's sum of L_student."""
        total = torch.zeros((), device=self._groundwork.device)
        for batch, is_last in plan:
            prompted_hidden = self._teacher.hidden(batch, "prompted")

            def loss(student: Projection, prompted_hidden: Tensor = prompted_hidden) -> LinearDivergence:
                with self._teacher.projection(prompted_hidden) as prompted:
                    term = DivergenceTerm(divergence=reverse_kl, target=prompted)
                    return self._groundwork.loss(student, [term], scale=plan.mean.scale)

            (term_sum,) = self._student.accumulate(batch, loss, is_last=is_last)
            total += term_sum
        return total
