"""How commands print their tables: where to, and with which names."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

LOG_WIDTH = 160
"""Columns of a table in a log or a pipe, which have no width of their own."""


def results_console() -> Console:
    """Standard output; where it is no terminal, tables are wide enough for their names and digits."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)


def with_error(value: float | None, standard_error: float | None) -> str:
    """A score with its standard error, as far as they are known."""
    return "–" if value is None else f"{value:.2f}" + ("" if standard_error is None else f" ± {standard_error:.2f}")


def short_names(directories: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as distinguish it from the others."""
    parts = [Path(os.path.abspath(directory)).parts for directory in directories]
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]))
    return names


def metric_label(name: str) -> str:
    """A metric's name in tables and sentences."""
    return {"rougeL": "ROUGE-L", "rougeL_unicode": "ROUGE-L (Unicode)"}.get(name, name.replace("_", " "))
