"""What KD, SeqKD, GKD and DistiLLM share: one step of the student towards the plain teacher, on given sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from kd.config import Config
from kd.config_methods import DistillationConfig
from kd.data.batch import SequenceBatch
from kd.data.loader import Window
from kd.engines.student import Student
from kd.engines.teacher import Teacher
from kd.losses.divergences import Divergence, make_divergence
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.linear_divergence import LinearDivergence
from kd.losses.terms import DivergenceTerm, Head, Projection, Term
from kd.measurement import StepMetrics, Stopwatch
from kd.methods.method import Groundwork, Targets, WindowPlan, own_responses


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the student minimises per token: weights of its divergence from the teacher and of the cross entropy."""

    divergence: Divergence
    divergence_weight: float = 1.0
    likelihood_weight: float = 0.0

    @classmethod
    def of(cls, settings: DistillationConfig, *, ratio: float = 1.0) -> "Objective":
        """(1 - ratio)·CE + ratio·T²·D, where T² keeps the size of D's gradient (arXiv 1503.02531, §2.1)."""
        divergence = make_divergence(
            settings.divergence, beta=settings.beta, alpha=settings.alpha, temperature=settings.temperature
        )
        return cls(
            divergence=divergence, divergence_weight=ratio * settings.temperature**2, likelihood_weight=1 - ratio
        )

    @property
    def names(self) -> list[str]:
        """What metrics call the terms."""
        return ["student_kd", "cross_entropy"] if self.likelihood_weight else ["student_kd"]

    def terms(self, target: Projection, *, labels: Tensor) -> list[Term]:
        """The terms of one chunked loss for a micro-batch."""
        terms: list[Term] = [
            DivergenceTerm(divergence=self.divergence, target=target, weight=self.divergence_weight),
            LikelihoodTerm(labels=labels, weight=self.likelihood_weight),
        ]
        return terms[: len(self.names)]


class PlainDistillation:
    """Minimises an objective against p(.|x) on the sequences of each window."""

    def __init__(
        self,
        config: Config,
        *,
        objective: Objective,
        student: Student,
        teacher: Teacher,
        targets: Targets,
        groundwork: Groundwork,
        data_weight: float = 0.0,
    ) -> None:
        """`data_weight` is that of the cross entropy on the rows' own responses, whatever the sequences are."""
        self._objective = objective
        self._student = student
        self._teacher = teacher
        self._targets = targets
        self._groundwork = groundwork
        self._data_weight = data_weight
        self._learning_rate = config.optimizer.learning_rate

    def step(self, window: Window) -> StepMetrics:
        """One optimizer step of the student on a window."""
        groundwork = self._groundwork
        stopwatch = Stopwatch(groundwork.device)
        learning_rate = groundwork.learning_rate(self._learning_rate, step=window.step)
        with stopwatch.time("generation"):
            targets = self._targets(window)
        plan = groundwork.plan(targets)
        num_tokens = plan.mean.num_tokens
        if num_tokens == 0:
            return StepMetrics(num_tokens=0, num_sequences=groundwork.num_sequences, stopwatch=stopwatch)
        with stopwatch.time("teacher"):
            hidden = plan.hidden(self._teacher.hidden)
            self._teacher.release()
        with stopwatch.time("student"):
            with self._teacher.head() as head:
                sums = accumulate_student(
                    plan,
                    hidden,
                    student=self._student,
                    head=head,
                    objective=self._objective,
                    groundwork=groundwork,
                    ends_window=not self._data_weight,
                )
            token_sums = dict(zip(self._objective.names, sums, strict=True))
            if self._data_weight:
                token_sums["cross_entropy"] = self._accumulate_data(window) * num_tokens
        with stopwatch.time("optimizer"):
            self._student.step(learning_rate=learning_rate)
        return StepMetrics(
            num_tokens=num_tokens,
            num_sequences=groundwork.num_sequences,
            token_sums=token_sums,
            values={"learning_rate": learning_rate, "grad_norm": self._student.engine.grad_norm},
            stopwatch=stopwatch,
        )

    def _accumulate_data(self, window: Window) -> Tensor:
        """Gradient of the cross entropy on the data's responses, a mean over their tokens; this rank's part of it."""
        plan = self._groundwork.plan(own_responses(window))
        total = torch.zeros((), device=self._groundwork.device)
        for batch, is_last in plan:

            def loss(trained: Projection, batch: SequenceBatch = batch) -> LinearDivergence:
                term = LikelihoodTerm(labels=batch.labels, weight=self._data_weight)
                return self._groundwork.loss(trained, [term], scale=plan.mean.scale)

            total += self._student.accumulate(batch, loss, is_last=is_last)[0]
        return total / plan.mean.num_tokens


def accumulate_student(
    plan: WindowPlan,
    teacher_hidden: Sequence[Float[Tensor, "n H"]],
    *,
    student: Student,
    head: Head,
    objective: Objective,
    groundwork: Groundwork,
    ends_window: bool = True,
) -> Float[Tensor, " terms"]:
    """Gradient to θ of the mean objective over a window's response tokens.

    Args:
        teacher_hidden: the teacher's hidden states at the response positions of each micro-batch.
        head: the teacher's.
        ends_window: False where another gradient is added before the optimizer step.

    Returns:
        The sum of each unweighted term [nats] over this rank's response tokens, as `objective.names` calls them.
    """
    sums = torch.zeros(len(objective.names), device=groundwork.device)
    for (batch, is_last), hidden in zip(plan, teacher_hidden, strict=True):

        def loss(trained: Projection, batch: SequenceBatch = batch, hidden: Tensor = hidden) -> LinearDivergence:
            terms = objective.terms(head.project(hidden), labels=batch.labels)
            return groundwork.loss(trained, terms, scale=plan.mean.scale)

        sums += student.accumulate(batch, loss, is_last=is_last and ends_window)
    return sums
