"""Files that survive a kill: written as a whole, or line by line with a torn last line left out."""

import json
import os
from pathlib import Path
from typing import Any

from kd.errors import UserError

_SHOWN_CHARACTERS = 60


def write_atomically(path: Path, text: str) -> None:
    """Write a file, and its directory where that is missing; other processes see all of the file or none of it.

    Raises:
        UserError: the file cannot be written.
    """
    # Two processes that write the same file must not share the partial one.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            # Without this, a host that fails may leave an empty file under the final name.
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a writable directory") from None


def make_directory(path: Path) -> None:
    """Make a directory for results, before hours of work end in one.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}); choose a writable directory") from None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON Lines file that a process appends to; a torn last line is left out.

    Raises:
        UserError: the file cannot be read, or another line is not a JSON object.
    """
    try:
        content = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected one JSON object per line") from None
    # Not splitlines(): a string may contain characters that Python takes for the end of a line.
    lines = content.split("\n")[:-1]
    return [_parse(line, source=f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def _parse(line: str, *, source: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{source}: expected a JSON object, found {line[:_SHOWN_CHARACTERS]!r}; remove that line")
    return record
