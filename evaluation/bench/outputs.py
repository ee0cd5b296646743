"""The directory of results, and what is said about it in the end."""

import json
from pathlib import Path

from rich.console import Console

from evaluation.results import write_atomically
from kd.errors import UserError


def make_out(out: Path) -> None:
    """Make the directory of results.

    Raises:
        UserError: it exists or cannot be made.
    """
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); choose a new directory") from None


def write_json(path: Path, values: object) -> None:
    """Write what a measurement found, readable; a file that was there is replaced as a whole.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def print_files(out: Path, *, console: Console) -> None:
    """Say where the results are."""
    files = sorted(path.name for path in out.iterdir() if path.suffix in (".json", ".png", ".svg"))
    console.print(f"{out}: {', '.join(files)}", markup=False, soft_wrap=True)
