"""What KD, SeqKD, GKD and DistiLLM share: one step of the student towards the plain teacher, on given sequences."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kd.config.methods import DistillationConfig
from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.losses.divergences import Divergence, make_divergence
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.terms import DivergenceTerm, Head, Projection, Term
from kd.methods.method import Groundwork, Targets, WindowPlan, own_responses
from kd.models.student import Student
from kd.models.teacher import Teacher
from kd.zero.recorder import StepMetrics, Stopwatch


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the student minimises per token: weights of its divergence from the teacher and of the cross entropy."""

    divergence: Divergence
    divergence_weight: float = 1.0
    likelihood_weight: float = 0.0
    data_weight: float = 0.0
    """Weight of the cross entropy on the rows' own responses, whatever the sequences are."""

    @classmethod
    def of(cls, settings: DistillationConfig, *, ratio: float = 1.0, data_weight: float = 0.0) -> "Objective":
        """(1 - ratio)·CE + ratio·T²·D, where T² keeps the size of D's gradient (arXiv 1503.02531, §2.1)."""
        divergence = make_divergence(
            settings.divergence, beta=settings.beta, alpha=settings.alpha, temperature=settings.temperature
        )
        return cls(
            divergence=divergence,
            divergence_weight=ratio * settings.temperature**2,
            likelihood_weight=1 - ratio,
            data_weight=data_weight,
        )

    @property
    def names(self) -> list[str]:
        """What metrics call the terms."""
        return ["student_kd", "cross_entropy"] if self.likelihood_weight else ["student_kd"]

    def terms(
        self, plan: WindowPlan, teacher_hidden: Sequence[Float[Tensor, "n H"]], *, head: Head
    ) -> list[list[Term]]:
        """The terms of each micro-batch, from the teacher's hidden states at its response positions and its head."""
        return [
            self._terms(head.project(hidden), labels=batch.labels)
            for batch, hidden in zip(plan.batches, teacher_hidden, strict=True)
        ]

    def _terms(self, target: Projection, *, labels: Tensor) -> list[Term]:
        terms: list[Term] = [
            DivergenceTerm(divergence=self.divergence, target=target, weight=self.divergence_weight),
            LikelihoodTerm(labels=labels, weight=self.likelihood_weight),
        ]
        return terms[: len(self.names)]


class PlainDistillation(ABC):
    """Minimises an objective against p(.|x) on the sequences of each window."""

    def __init__(
        self, config: Config, *, student: Student, teacher: Teacher, targets: Targets, groundwork: Groundwork
    ) -> None:
        self._objective = self.objective(config)
        self._student = student
        self._teacher = teacher
        self._targets = targets
        self._groundwork = groundwork
        self._learning_rate = config.optimizer.learning_rate

    @staticmethod
    @abstractmethod
    def objective(config: Config) -> Objective:
        """What the method minimises with these settings."""
        ...

    def step(self, window: ExampleBatch) -> StepMetrics:
        """One optimizer step of the student on a window."""
        groundwork = self._groundwork
        stopwatch = Stopwatch(groundwork.device)
        learning_rate = groundwork.learning_rate(self._learning_rate, step=window.step)
        groundwork.gather(self._student, self._teacher, stopwatch=stopwatch)
        with stopwatch.time("generation"):
            targets = self._targets(window)
        plan = groundwork.plan(targets)
        num_tokens = plan.mean.num_tokens
        if num_tokens == 0:
            return groundwork.skip(stopwatch)
        with stopwatch.time("teacher"):
            hidden = plan.hidden(self._teacher.hidden)
        # Before the release: a teacher that is whole need not gather its head again.
        with self._teacher.head() as head:
            self._teacher.release()
            with stopwatch.time("student"), self._student.window():
                sums = groundwork.accumulate(
                    plan,
                    self._objective.terms(plan, hidden, head=head),
                    student=self._student,
                    ends_window=not self._objective.data_weight,
                )
                token_sums = dict(zip(self._objective.names, sums, strict=True))
                if self._objective.data_weight:
                    token_sums["cross_entropy"] = self._accumulate_data(window) * num_tokens
        return groundwork.finish(
            self._student,
            learning_rate=learning_rate,
            num_tokens=num_tokens,
            token_sums=token_sums,
            stopwatch=stopwatch,
        )

    def _accumulate_data(self, window: ExampleBatch) -> Tensor:
        """Gradient of the cross entropy on the data's responses, a mean over their tokens; this rank's part of it."""
        plan = self._groundwork.plan(own_responses(window))
        weight = self._objective.data_weight
        terms = [[LikelihoodTerm(labels=batch.labels, weight=weight)] for batch in plan.batches]
        sums = self._groundwork.accumulate(plan, terms, student=self._student)
        return sums[0] / plan.mean.num_tokens
