"""Files that survive a kill: written as a whole, or line by line with a torn last line left out."""

import json
import os
from collections import Counter
from collections.abc import Iterable
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


def parse_json(text: str) -> Any:
    """The value of a JSON text in which no object has a key twice; Python's reader would take the last one in silence.

    Raises:
        ValueError: it is not JSON (a JSONDecodeError), a key is there twice, or an integer has thousands of digits.
        RecursionError: it is nested too deeply.
    """
    return _DECODER.decode(text)


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"an object has {list_repeated(name for name, _ in pairs)} more than once")
    return made


# json.loads would make a decoder for each line.
_DECODER = json.JSONDecoder(object_pairs_hook=_make_object)


def list_repeated(names: Iterable[str]) -> str:
    """The names that are there more than once; empty if there are none."""
    return ", ".join(f"`{name}`" for name, count in Counter(names).items() if count > 1)


def _parse(line: str, *, source: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{source}: expected a JSON object, found {line[:_SHOWN_CHARACTERS]!r}; remove that line")
    return record
