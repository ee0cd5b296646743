"""Responses of a judge: two scores or none, and the files that keep every response."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from kd.errors import UserError
from kd.files import write_atomically

LOWEST, HIGHEST = 1.0, 10.0
_NUMBER = r"([0-9]{1,2}(?:\.[0-9]+)?)"
_TWO_SCORES = re.compile(rf"{_NUMBER}(?:[ \t]+|[ \t]*,[ \t]*){_NUMBER}")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Of Assistant 1 and 2, from 1 to 10."""

    first: float
    second: float


@dataclass(frozen=True, kw_only=True)
class JudgeResponse:
    """One response of the judge; the counts of tokens are None where the server did not send them."""

    text: str
    input_tokens: int | None
    output_tokens: int | None


def parse_scores(text: str) -> Scores | None:
    """The two numbers that are all of the first line, with white space or a comma between them; else None.

    "8/10" may be one score of ten or two scores: nothing is guessed.
    """
    lines = text.strip().splitlines()
    match = _TWO_SCORES.fullmatch(lines[0].strip()) if lines else None
    if match is None:
        return None
    first, second = float(match[1]), float(match[2])
    if not (LOWEST <= first <= HIGHEST and LOWEST <= second <= HIGHEST):
        return None
    return Scores(first=first, second=second)


class ResponseCache:
    """A directory with a file for each response of a judge, named after the complete request."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, request: Mapping[str, object]) -> JudgeResponse | None:
        """The response to an earlier `request` that was the same in every value.

        Raises:
            UserError: its file is broken.
        """
        path = self._path(request)
        try:
            return JudgeResponse(**json.loads(path.read_text(encoding="utf-8"))["reply"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError):
            raise UserError(f"{path}: is no response of a judge; delete the file to ask again") from None

    def keep(self, request: Mapping[str, object], response: JudgeResponse) -> None:
        """Write a response to its file.

        Raises:
            UserError: it cannot be written.
        """
        # "reply" is its name in caches of earlier versions.
        content = {"request": dict(request), "reply": asdict(response)}
        write_atomically(self._path(request), json.dumps(content, indent=1))

    def _path(self, request: Mapping[str, object]) -> Path:
        name = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return self._directory / name[:2] / f"{name}.json"
