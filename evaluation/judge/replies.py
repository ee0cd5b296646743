"""What a judge replied: two scores or none, and the files that keep every reply."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kd.errors import UserError

LOWEST, HIGHEST = 1.0, 10.0
_NUMBER = r"([0-9]{1,2}(?:\.[0-9]+)?)"
_TWO_SCORES = re.compile(rf"{_NUMBER}(?:[ \t]+|[ \t]*,[ \t]*){_NUMBER}")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of Assistant 1 and 2, from 1 to 10."""

    first: float
    second: float


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What an endpoint answered; counts are None where it did not say them."""

    text: str
    input_tokens: int | None
    output_tokens: int | None


def parse_scores(text: str) -> Scores | None:
    """The two numbers that are all of the first line, with white space or a comma between them; else None.

    Anything else is left to another try. "8/10" is one score of ten as often as it is two, and is not guessed at.
    """
    lines = text.strip().splitlines()
    match = _TWO_SCORES.fullmatch(lines[0].strip()) if lines else None
    if match is None:
        return None
    first, second = float(match[1]), float(match[2])
    if not (LOWEST <= first <= HIGHEST and LOWEST <= second <= HIGHEST):
        return None
    return Scores(first=first, second=second)


class ReplyCache:
    """A directory with a file for each reply, named after everything that was asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, request: Mapping[str, object]) -> Reply | None:
        """The reply to an earlier `request` that was the same in every value.

        Raises:
            UserError: its file is broken.
        """
        path = self._path(request)
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8"))["reply"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(f"{path}: is no reply of a judge; delete the file to ask again") from None

    def keep(self, request: Mapping[str, object], reply: Reply) -> None:
        """Write a reply so that it is there as a whole or not at all, whatever ends this process.

        Raises:
            UserError: it cannot be written.
        """
        path = self._path(request)
        text = json.dumps({"request": dict(request), "reply": asdict(reply)}, indent=1)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Another name for each writer: two processes may ask the same.
            with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", delete=False) as file:
                file.write(text)
            os.replace(file.name, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose a writable --cache") from None

    def _path(self, request: Mapping[str, object]) -> Path:
        name = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return self._directory / name[:2] / f"{name}.json"
