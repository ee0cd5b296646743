"""metrics.jsonl of a training, also of one that is still going on or was killed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.train.metric_log import FILE_NAME

_MAX_SHOWN_ERROR = 60

Record = Mapping[str, Any]
"""One line of metrics.jsonl."""


def read_records(run_dir: Path, *, required: Sequence[str] = ("step",)) -> list[Record]:
    """The records of a run in the order of their steps, each with numbers under the `required` names.

    Raises:
        UserError: no metrics there, or a line that is no record.
    """
    path = run_dir / FILE_NAME
    try:
        content = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        raise UserError(f"{run_dir}: has no {FILE_NAME}; give the run.dir of a training") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable or give another run") from None
    # What follows the last line break is being written, or was torn off.
    return [parse_record(line, path=path, required=required) for line in content.split("\n")[:-1]]


def parse_record(text: str, *, path: Path, required: Sequence[str] = ()) -> Record:
    """A JSON object with numbers under the `required` names.

    Raises:
        UserError: something else; names `path`.
    """
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if not isinstance(values, dict) or not all(isinstance(values.get(name), int | float) for name in required):
        raise UserError(
            f"{path}: {text[:_MAX_SHOWN_ERROR]!r} is not what a training writes"
            f" ({', '.join(required) or 'a JSON object'}); remove that line or give another run"
        )
    return values
