"""The loop around a method: windows, logs, validation, checkpoints, the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from kd.config.schema import Config
from kd.data.loader import BatchLoader
from kd.distributed import World
from kd.methods.method import Method, ValidationFollower
from kd.models.student import Student
from kd.models.teacher import AdaptedTeacher
from kd.train.checkpoint import Checkpoints, TrainerState
from kd.train.console import RunConsole
from kd.train.metric_log import MetricLog
from kd.train.validation import Validator

Export = Callable[[Path], None]
"""Writes the student of this moment as a Hugging Face directory."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Everything a run needs, put together by `kd.train.assemble`."""

    config: Config
    world: World
    run_dir: Path
    student: Student
    adapted_teacher: AdaptedTeacher | None
    method: Method
    loader: BatchLoader
    validator: Validator | None
    checkpoints: Checkpoints
    console: RunConsole
    log: MetricLog
    export: Export

    def train(self, state: TrainerState) -> TrainerState:
        """Go on from `state` to the last step, or until run.max_hours have passed; returns the state then."""
        started = time.monotonic()
        num_steps = self.config.schedule.steps
        if state.step == 0 and self.validator is not None and isinstance(self.method, ValidationFollower):
            self.method.follow_validation(self.validator.loss())
        self.log.restart_clock()
        while state.step < num_steps:
            step = state.step + 1
            metrics = self.method.step(self.loader.window(step))
            self.log.add(metrics)
            if metrics.num_tokens == 0:
                self.console.say(f"step {step}: no response token in the whole window; the step is skipped")
            out_of_time = self._out_of_time(started)
            saves = step == num_steps or out_of_time or step % self.config.checkpoints.every == 0
            state = self._finish_step(replace(state, step=step), saves=saves)
            # Before the checkpoint: a run that is killed in between comes here again.
            self._export_on_the_way(state.step)
            if saves:
                self.checkpoints.save(
                    state, student=self.student, adapted_teacher=self.adapted_teacher, method=self.method
                )
                self.log.restart_clock()
            if out_of_time and step < num_steps:
                self.console.say(
                    f"run.max_hours={self.config.run.max_hours} have passed: stopped after step {step} of {num_steps};"
                    " the same command goes on from here"
                )
                return state
        self.export(self.run_dir / "final")
        return state

    def _export_on_the_way(self, step: int) -> None:
        """Keep the student of this step where `checkpoints.export_every` asks for it."""
        every = self.config.checkpoints.export_every
        if every is not None and step % every == 0:
            self.export(self.run_dir / "exports" / f"step-{step}")
            self.log.restart_clock()

    def _finish_step(self, state: TrainerState, *, saves: bool) -> TrainerState:
        """Log and validate where it is due."""
        is_last = state.step == self.config.schedule.steps
        validates = self.validator is not None and (is_last or state.step % self.config.validation.every == 0)
        # A checkpoint ends an interval too: it must not keep numbers that nobody has looked at, and a resumed
        # run starts with an empty interval.
        if not (validates or saves or state.step % self.config.run.log_every == 0):
            return state
        record = self.log.close_interval(step=state.step, epoch=self.loader.epoch_at(state.step))
        if self.validator is not None and validates:
            results = self.validator.measure()
            record |= results
            if isinstance(self.method, ValidationFollower):
                self.method.follow_validation(results["validation/loss"])
            state = self._keep_best(state, results)
            self.log.restart_clock()
        self.log.write(record)
        self.console.report(record)
        return state

    def _keep_best(self, state: TrainerState, results: dict[str, float]) -> TrainerState:
        """Export the student where it is better than all before: by ROUGE-L, or by loss without sampling."""
        score = results.get("validation/rougeL", -results["validation/loss"])
        if state.best is not None and not score > state.best:
            return state
        self.export(self.run_dir / "best")
        return replace(state, best=score, best_step=state.step)

    def _out_of_time(self, started: float) -> bool:
        if self.config.run.max_hours is None:
            return False
        passed = torch.tensor(time.monotonic() - started, dtype=torch.float64, device=self.world.device)
        # One clock decides, or ranks would leave at different steps.
        return bool(self.world.max_across_ranks(passed).item() >= self.config.run.max_hours * 3600)
