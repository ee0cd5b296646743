"""Requests to stop a run: signals to any of its ranks, and run.max_hours."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import torch

from kd.distributed import World
from kd.errors import STOPPED_CODE

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
_ONE_REQUEST_SECONDS = 5.0
"""A launcher passes on one signal as several within this time: deepspeed sends SIGINT, then SIGTERM twice."""
_TIME_IS_UP = 1_000


class StopRequest:
    """Notes signals of this rank; the ranks agree between steps whether to stop."""

    def __init__(self, *, max_hours: float | None, world: World) -> None:
        self._max_hours = max_hours
        self._world = world
        self._started = time.monotonic()
        self._received: int | None = None
        self._received_at = 0.0
        self._has_state = False
        self._is_saved = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle `SIGNALS` inside, if this is the main thread, which alone may.

        Before `begin` a signal ends the process: there is nothing to save. After `end`, too, for as long as it lives.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            # A launcher ends the ranks that are slower to leave, whose exit code must be that of the others.
            if not self._is_saved:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    def begin(self) -> None:
        """From now on there is a state to save: signals are noted."""
        self._has_state = True

    def end(self) -> None:
        """The state is saved, and the process leaves."""
        self._is_saved = True

    def reason(self) -> str | None:
        """Why the ranks stop after this step, the same on all of them; None to go on. All ranks call it together."""
        request = self._received or 0
        if self._max_hours is not None and time.monotonic() - self._started >= self._max_hours * 3600:
            request = max(request, _TIME_IS_UP)
        found = torch.tensor(request, dtype=torch.int64, device=self._world.device)
        agreed = int(self._world.max_across_ranks(found).item())
        if agreed == _TIME_IS_UP:
            return f"run.max_hours={self._max_hours} have passed"
        return signal.Signals(agreed).name if agreed else None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._is_saved or (not self._has_state and number != signal.SIGINT):
            os._exit(STOPPED_CODE)
        if not self._has_state or (self._received is not None and now - self._received_at > _ONE_REQUEST_SECONDS):
            os._exit(128 + number)
        if self._received is None:
            self._received, self._received_at = number, now
            if self._world.is_main:
                # Not print: the signal may have interrupted one.
                name = signal.Signals(number).name
                with suppress(OSError):
                    os.write(2, f"{name}: stopping after this step; a second signal ends the run at once\n".encode())
