"""Where the commands print their tables."""

import sys

from rich.console import Console

LOG_WIDTH = 160
"""Columns of a table in a log or a pipe, which have no width of their own."""


def results_console() -> Console:
    """Standard output; where it is no terminal, tables are wide enough for their names and digits."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else LOG_WIDTH)
