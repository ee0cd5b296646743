"""The console of a run: live progress on a terminal, plain lines elsewhere, all lines in log.txt."""

import sys
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Record = dict[str, float | int]

# Metrics in the one-line summary of a step, in this order, if the method measures them.
_SHOWN = (
    "student_kd",
    "prompt_kd",
    "prompt_regularization",
    "cross_entropy",
    "skipped_updates",
    "prompt_skipped_updates",
    "mean_response_length",
    "tokens_per_second",
    "validation/loss",
    "validation/rougeL",
)


# Metrics beside the progress bar, short enough for a narrow terminal.
_LIVE = {"student_kd": "student", "prompt_kd": "prompt", "cross_entropy": "loss", "tokens_per_second": "tokens/s"}


class _Terminal(Console):
    """Prints nothing more when its reader is gone, such as a launcher that was killed: the run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class RunConsole:
    """Prints on the main rank only."""

    def __init__(self, log_file: Path, *, is_main: bool, num_steps: int, done: int) -> None:
        self._file: IO[str] | None = log_file.open("a", encoding="utf-8", buffering=1) if is_main else None
        self._console = _Terminal(file=sys.stdout, soft_wrap=True, highlight=False)
        self._progress: Progress | None = None
        if is_main and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[numbers]}"),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=num_steps, completed=done, numbers="")
        self._num_steps = num_steps

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._file is not None:
            self._file.close()

    def say(self, text: str) -> None:
        """One line for the terminal and for log.txt."""
        if self._file is None:
            return
        self._console.print(text, markup=False)
        self._write(text)

    def report(self, record: Record) -> None:
        """Show the numbers of a step that was logged."""
        numbers = "  ".join(f"{name} {record[name]:.4g}" for name in _SHOWN if name in record)
        line = f"step {record['step']}/{self._num_steps}  {numbers}"
        if self._progress is not None:
            live = "  ".join(f"{label} {record[name]:.3g}" for name, label in _LIVE.items() if name in record)
            self._progress.update(self._task, completed=record["step"], numbers=live)
            self._write(line)
            if any(name.startswith("validation/") for name in record):
                self._console.print(line, markup=False)
        else:
            self.say(line)

    def _write(self, text: str) -> None:
        if self._file is not None:
            self._file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {text}\n")
