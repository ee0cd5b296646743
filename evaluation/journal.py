"""What a killed evaluation had finished: append-only files, one for each rank, next to the generations."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.responses import Generation, SeededGeneration
from evaluation.results import generation_line, parse_generation
from kd.errors import UserError

_PATTERN = "unfinished-rank-*.jsonl"

Finished = dict[tuple[int, int], Generation]
"""By seed and row."""


class Journal:
    """The file of one rank; a line once written is never changed."""

    def __init__(self, directory: Path, *, rank: int) -> None:
        """Go on with the file of an earlier run, without the line that its end tore."""
        self._path = directory / _PATTERN.replace("*", str(rank))
        self._checked = False

    def append(self, generations: Sequence[SeededGeneration]) -> None:
        """Add generations.

        Raises:
            UserError: the file cannot be written.
        """
        text = "".join(generation_line(generation, seed=seed) + "\n" for seed, generation in generations)
        try:
            if not self._checked:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _cut_torn_line(self._path)
                self._checked = True
            with self._path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written ({error.strerror}); choose a writable --out") from None


def read_journals(directory: Path) -> Finished:
    """The generations in the files of all ranks that can be seen from here.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    finished: Finished = {}
    for path in sorted(directory.glob(_PATTERN)):
        try:
            # What follows the last line break was torn off.
            lines = path.read_bytes().split(b"\n")[:-1]
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); delete it to evaluate again") from None
        for number, line in enumerate(lines, start=1):
            text = line.decode(errors="replace")
            others, generation = parse_generation(text, place=f"{path}:{number}", extra=("seed",))
            finished[others["seed"], generation.row] = generation
    return finished


def remove_journals(directory: Path) -> None:
    """Delete the files of all ranks that can be seen from here; several ranks may do so at once."""
    for path in directory.glob(_PATTERN):
        path.unlink(missing_ok=True)


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
