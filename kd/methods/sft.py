"""Supervised fine-tuning: cross entropy on the responses of the data."""

from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.losses.likelihood import LikelihoodTerm
from kd.methods.method import Groundwork, Targets
from kd.models.student import Student
from kd.zero.recorder import StepMetrics, Stopwatch


class SupervisedFineTuning:
    """Minimises -log q_θ(y|x) per response token."""

    def __init__(self, config: Config, *, student: Student, targets: Targets, groundwork: Groundwork) -> None:
        self._student = student
        self._targets = targets
        self._groundwork = groundwork
        self._learning_rate = config.optimizer.learning_rate

    def step(self, window: ExampleBatch) -> StepMetrics:
        """One optimizer step of the model on a window."""
        groundwork = self._groundwork
        stopwatch = Stopwatch(groundwork.device)
        plan = groundwork.plan(self._targets(window))
        if plan.mean.num_tokens == 0:
            return groundwork.skip(stopwatch)
        learning_rate = groundwork.learning_rate(self._learning_rate, step=window.step)
        with stopwatch.time("student"), self._student.window():
            terms = [[LikelihoodTerm(labels=batch.labels)] for batch in plan.batches]
            cross_entropy = groundwork.accumulate(plan, terms, student=self._student)[0]
        return groundwork.finish(
            self._student,
            learning_rate=learning_rate,
            num_tokens=plan.mean.num_tokens,
            token_sums={"cross_entropy": cross_entropy},
            stopwatch=stopwatch,
        )
