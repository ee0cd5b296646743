"""Supervised fine-tuning: cross entropy on the responses of the data."""

import torch

from kd.config import Config
from kd.data.loader import Window
from kd.engines.student import Student
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.linear_divergence import LinearDivergence
from kd.losses.terms import Projection
from kd.measurement import StepMetrics, Stopwatch
from kd.methods.method import Groundwork, Targets


class SupervisedFineTuning:
    """Minimises -log q_θ(y|x) per response token."""

    def __init__(self, config: Config, *, student: Student, targets: Targets, groundwork: Groundwork) -> None:
        self._student = student
        self._targets = targets
        self._groundwork = groundwork
        self._learning_rate = config.optimizer.learning_rate

    def step(self, window: Window) -> StepMetrics:
        """One optimizer step of the model on a window."""
        groundwork = self._groundwork
        stopwatch = Stopwatch(groundwork.device)
        plan = groundwork.plan(self._targets(window))
        total = torch.zeros((), device=groundwork.device)
        learning_rate = groundwork.learning_rate(self._learning_rate, step=window.step)
        with stopwatch.time("student"):
            for batch, is_last in plan:

                def loss(student: Projection, labels: torch.Tensor = batch.labels) -> LinearDivergence:
                    return groundwork.loss(student, [LikelihoodTerm(labels=labels)], scale=plan.mean.scale)

                (term_sum,) = self._student.accumulate(batch, loss, is_last=is_last)
                total += term_sum
        with stopwatch.time("optimizer"):
            self._student.step(learning_rate=learning_rate)
        return StepMetrics(
            num_tokens=plan.mean.num_tokens,
            num_sequences=groundwork.num_sequences,
            token_sums={"cross_entropy": total},
            values={"learning_rate": learning_rate, "grad_norm": self._student.engine.grad_norm},
            stopwatch=stopwatch,
        )
