"""What one optimizer step reports, without waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Stopwatch:
    """Times the parts of a step; on a GPU with events, which do not stop the device."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: dict[str, tuple[float | torch.cuda.Event, float | torch.cuda.Event]] = {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Measure the body under `name`."""
        start = self._now()
        yield
        self._spans[name] = (start, self._now())

    def seconds(self) -> dict[str, float]:
        """Seconds of each part; waits for a GPU to finish what was timed."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return {name: _elapsed(start, end) for name, (start, end) in self._spans.items()}

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
