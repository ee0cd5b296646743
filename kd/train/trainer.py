"""The training loop around a method: global batches, logs, validation, checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path

from kd.config.schema import Config
from kd.data.loader import BatchLoader
from kd.errors import RunStopped
from kd.methods.base import Method
from kd.rollout.probe import find_broken
from kd.train.checkpoint import Checkpoints, TrainerState, export_student
from kd.train.console import RunConsole
from kd.train.metric_log import MetricLog
from kd.train.stop import StopRequest
from kd.train.validation import Validator
from kd.train.watch import Watch
from kd.zero.recorder import StepMetrics
from kd.zero.residency import local_values


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Everything that a run needs, connected by `kd.train.assemble`."""

    run_dir: Path
    method: Method
    loader: BatchLoader
    validator: Validator | None
    checkpoints: Checkpoints
    console: RunConsole
    log: MetricLog
    watch: Watch

    @property
    def config(self) -> Config:
        return self.method.config

    def train(self, state: TrainerState, *, stop: StopRequest) -> None:
        """Train from `state` to the last step, and export the student.

        Raises:
            RunStopped: `stop` asked for it; the state is saved.
        """
        stop.begin()
        last_saved = state.step
        num_steps, export_every = self.config.schedule.steps, self.config.checkpoints.export_every
        if state.step == 0 and self.validator is not None and self.method.follows_validation:
            self.method.follow_validation(self.validator.loss())
        self.log.restart_clock()
        while state.step < num_steps:
            step = state.step + 1
            metrics = self.step(step, last_saved=last_saved)
            self.log.add(metrics)
            if metrics.num_tokens == 0:
                self.console.say(f"step {step}: the global batch has no response token; the step is skipped")
            reason = stop.reason()
            saves = step == num_steps or reason is not None or step % self.config.checkpoints.every == 0
            state = self._finish_step(replace(state, step=step), saves=saves)
            # Before the checkpoint: a run that is killed in between repeats this step.
            if export_every is not None and step % export_every == 0:
                self._export(self.run_dir / "exports" / f"step-{step}", step=step)
                self.log.restart_clock()
            if saves:
                self._check_weights(step)
                self.checkpoints.save(state, self.method)
                last_saved = step
                self.log.restart_clock()
            if reason is not None and step < num_steps:
                stop.end()
                self.console.say(
                    f"{reason}: stopped after step {step} of {num_steps}; the same command resumes from here"
                )
                raise RunStopped(reason)
        self._export(self.run_dir / "final", step=state.step)

    def step(self, step: int, *, last_saved: int = 0) -> StepMetrics:
        """Run optimizer step `step`, which counts from 1; all ranks call it together.

        Raises:
            UserError: a loss or a gradient is not finite. `last_saved` is the step of the latest checkpoint.
        """
        batch = self.loader.batch(step)
        metrics = self.method.run(batch)
        self.watch.check_step(metrics, batch, last_saved=last_saved)
        return metrics

    def _check_weights(self, step: int) -> None:
        broken = find_broken(self.method.student.model, values=local_values, world=self.method.world)
        self.watch.check_weights(broken, step=step)

    def _export(self, directory: Path, *, step: int) -> None:
        self._check_weights(step)
        export_student(directory, self.method, step=step)

    def _finish_step(self, state: TrainerState, *, saves: bool) -> TrainerState:
        """Log and validate when due."""
        is_last = state.step == self.config.schedule.steps
        validates = self.validator is not None and (is_last or state.step % self.config.validation.every == 0)
        # A checkpoint ends an interval too: a resumed run starts with an empty one, and what is saved has been checked
        # to be finite.
        if not (validates or saves or state.step % self.config.run.log_every == 0):
            return state
        record = self.log.close_interval(step=state.step, epoch=self.loader.epoch_at(state.step))
        if self.validator is not None and validates:
            results = self.validator.measure()
            self.watch.check_results(results, step=state.step)
            record |= results
            if self.method.follows_validation:
                self.method.follow_validation(results["validation/loss"])
            state = self._keep_best(state, results)
            self.log.restart_clock()
        self.log.write(record)
        self.console.report(record)
        for sentence in self.watch.notice(record):
            self.console.say(sentence)
        return state

    def _keep_best(self, state: TrainerState, results: dict[str, float]) -> TrainerState:
        """Export the student if its validation score is the best so far."""
        assert self.validator is not None
        score = self.validator.score(results)
        if state.best is not None and not score > state.best:
            return state
        self._export(self.run_dir / "best", step=state.step)
        return replace(state, best=score, best_step=state.step)
