"""The training loop around a method: global batches, logs, validation, checkpoints."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kd.config.schema import Config
from kd.data.loader import BatchLoader
from kd.methods.base import Method
from kd.train.checkpoint import Checkpoints, TrainerState, export_student
from kd.train.console import RunConsole
from kd.train.metric_log import MetricLog
from kd.train.validation import Validator
from kd.zero.recorder import StepMetrics


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

    @property
    def config(self) -> Config:
        return self.method.config

    def train(self, state: TrainerState) -> TrainerState:
        """Train from `state` to the last step, or until run.max_hours have passed; returns the state reached."""
        started = time.monotonic()
        num_steps, export_every = self.config.schedule.steps, self.config.checkpoints.export_every
        if state.step == 0 and self.validator is not None and self.method.follows_validation:
            self.method.follow_validation(self.validator.loss())
        self.log.restart_clock()
        while state.step < num_steps:
            step = state.step + 1
            metrics = self.step(step)
            self.log.add(metrics)
            if metrics.num_tokens == 0:
                self.console.say(f"step {step}: the global batch has no response token; the step is skipped")
            out_of_time = self._out_of_time(started)
            saves = step == num_steps or out_of_time or step % self.config.checkpoints.every == 0
            state = self._finish_step(replace(state, step=step), saves=saves)
            # Before the checkpoint: a run that is killed in between repeats this step.
            if export_every is not None and step % export_every == 0:
                self._export(self.run_dir / "exports" / f"step-{step}", step=step)
                self.log.restart_clock()
            if saves:
                self.checkpoints.save(state, self.method)
                self.log.restart_clock()
            if out_of_time and step < num_steps:
                self.console.say(
                    f"run.max_hours={self.config.run.max_hours} have passed: stopped after step {step} of {num_steps};"
                    " the same command resumes from here"
                )
                return state
        self._export(self.run_dir / "final", step=state.step)
        return state

    def step(self, step: int) -> StepMetrics:
        """Run optimizer step `step`, which counts from 1; all ranks call it together."""
        return self.method.run(self.loader.batch(step))

    def _export(self, directory: Path, *, step: int) -> None:
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
            record |= results
            if self.method.follows_validation:
                self.method.follow_validation(results["validation/loss"])
            state = self._keep_best(state, results)
            self.log.restart_clock()
        self.log.write(record)
        self.console.report(record)
        return state

    def _keep_best(self, state: TrainerState, results: dict[str, float]) -> TrainerState:
        """Export the student if its validation score is the best so far."""
        assert self.validator is not None
        score = self.validator.score(results)
        if state.best is not None and not score > state.best:
            return state
        self._export(self.run_dir / "best", step=state.step)
        return replace(state, best=score, best_step=state.step)

    def _out_of_time(self, started: float) -> bool:
        if self.config.run.max_hours is None:
            return False
        world = self.method.world
        passed = torch.tensor(time.monotonic() - started, dtype=torch.float64, device=world.device)
        # One clock decides, or ranks would leave at different steps.
        return bool(world.max_across_ranks(passed).item() >= self.config.run.max_hours * 3600)
