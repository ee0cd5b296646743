"""What one optimizer step reports, without waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Phase = Literal["generation", "teacher", "prompt", "student", "optimizer"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""What a step's seconds are split into: sampling, the teacher's passes without gradient, forward and backward of
the prompt's and of the student's loss, and the update rules."""


class Stopwatch:
    """Times the parts of a step; on a GPU with events, which do not stop the device."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Phase, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def time(self, phase: Phase) -> Iterator[None]:
        """Add the time of the body to `phase`."""
        start = self._now()
        # So that a profile of the step shows its phases too.
        with torch.profiler.record_function(phase):
            yield
        self._spans.append((phase, start, self._now()))

    def seconds(self) -> dict[Phase, float]:
        """Seconds of each phase; waits for a GPU to finish what was timed."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total: dict[Phase, float] = {}
        for phase, start, end in self._spans:
            total[phase] = total.get(phase, 0.0) + _elapsed(start, end)
        return total

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _elapsed(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return float(start.elapsed_time(end)) / 1000
    assert isinstance(start, float) and isinstance(end, float)
    return end - start


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """Measurements of one optimizer step on one rank."""

    num_tokens: int
    """Response tokens of the window on all ranks; 0 means that the step was skipped."""
    num_sequences: int
    """Sequences of the window on all ranks."""
    token_sums: dict[str, Tensor] = field(default_factory=dict)
    """Sums over this rank's response tokens; logged as means over all ranks' tokens."""
    values: dict[str, float | Tensor] = field(default_factory=dict)
    """Numbers that are the same on all ranks."""
    stopwatch: Stopwatch
