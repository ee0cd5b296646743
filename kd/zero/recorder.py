"""What one optimizer step measures, without synchronising with the device."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Phase = Literal["generation", "teacher", "prompt", "student", "optimizer"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Parts of a step's time: rollouts, the teacher's inference, forward and backward of the prompt's and of the
student's loss, and the optimizers."""


class Stopwatch:
    """Times the phases of a step; on a GPU with events, which do not stall the device."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        # Phase, start and end: seconds of the clock, or events on a GPU.
        self._spans: list[tuple[Phase, Any, Any]] = []
        self._is_running = False
        self.phase: Phase | None = None
        """The phase that began last."""

    @contextmanager
    def time(self, phase: Phase) -> Iterator[None]:
        """Add the time of the body to `phase`; inside another phase it belongs to that one."""
        if self._is_running:
            yield
            return
        self._is_running, self.phase = True, phase
        start = self._now()
        try:
            # Profiles of the step show its phases, too.
            with torch.profiler.record_function(phase):
                yield
        finally:
            self._is_running = False
        self._spans.append((phase, start, self._now()))

    def seconds(self) -> dict[Phase, float]:
        """Seconds of each phase; on a GPU, this waits for the timed work."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total: dict[Phase, float] = {}
        for phase, start, end in self._spans:
            seconds = start.elapsed_time(end) / 1000 if self._on_gpu else end - start
            total[phase] = total.get(phase, 0.0) + seconds
        return total

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(kw_only=True)
class StepMetrics:
    """Measurements of one optimizer step on one rank."""

    num_tokens: int = 0
    """Response tokens, on all ranks, of the batch that the student was trained on; 0 for a skipped step."""
    token_means: dict[str, Tensor] = field(default_factory=dict)
    """This rank's part of means over response tokens: their sum over the ranks is logged."""
    values: dict[str, float | Tensor] = field(default_factory=dict)
    """Numbers that are the same on all ranks."""
    stopwatch: Stopwatch


class Recorder:
    """Collects the measurements of the step in progress: its models, its method and the rollouts report to it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start(step=0)

    def start(self, *, step: int) -> None:
        """Begin optimizer step `step`, which counts from 1."""
        self.step = step
        self._metrics = StepMetrics(stopwatch=Stopwatch(self._device))

    def time(self, phase: Phase) -> AbstractContextManager[None]:
        """Add the time of the body to a phase of the step."""
        return self._metrics.stopwatch.time(phase)

    @property
    def phase(self) -> Phase | None:
        """The phase of the step that began last."""
        return self._metrics.stopwatch.phase

    def trained_on(self, num_tokens: int) -> None:
        """Note the size of the batch that the student is trained on; the first one counts."""
        self._metrics.num_tokens = self._metrics.num_tokens or num_tokens

    def add_token_mean(self, name: str, token_sum: Tensor, *, num_tokens: int) -> None:
        """Add this rank's sum over some response tokens to a mean over `num_tokens` tokens of all ranks."""
        means, part = self._metrics.token_means, token_sum / num_tokens
        means[name] = means[name] + part if name in means else part

    def record(self, name: str, value: float | Tensor) -> None:
        """Note a number that is the same on all ranks."""
        self._metrics.values[name] = value

    def finish(self) -> StepMetrics:
        """The measurements of the step."""
        return self._metrics

    def skip(self) -> StepMetrics:
        """The measurements of a step without a response token."""
        return StepMetrics(stopwatch=self._metrics.stopwatch)
