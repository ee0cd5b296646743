"""Students that a killed measurement had finished: a file beside the results, until these are there."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from evaluation.exposure_bias.curve import ExposureBias
from evaluation.identity import describe_weights, digest
from evaluation.results import write_atomically
from kd.distributed import World
from kd.errors import UserError

FILE_NAME = "unfinished.json"
_FORMAT = TypeAdapter(dict[str, ExposureBias])


class FinishedStudents:
    """Curves by everything that decides them; the same on all ranks, which look up and keep together."""

    def __init__(self, directory: Path, *, settings: Mapping[str, object], world: World) -> None:
        """Go on with the file of an earlier call.

        Args:
            settings: what decides a curve beside the student and the number of steps.

        Raises:
            UserError: on every rank, if the file cannot be read.
        """
        self._path = directory / FILE_NAME
        self._settings = dict(settings)
        self._world = world
        curves: dict[str, ExposureBias] = {}
        with world.agreed():
            if world.is_main and self._path.exists():
                curves = self._read()
        self._curves = world.from_main(curves)

    def find(self, student: str, *, num_steps: int) -> ExposureBias | None:
        """The curve of a student, if it has been measured with these settings."""
        return self._curves.get(self._key(student, num_steps))

    def keep(self, student: str, curve: ExposureBias, *, num_steps: int) -> None:
        """Write a curve so that it survives whatever ends this process.

        Raises:
            UserError: on every rank, if the file cannot be written.
        """
        self._curves[self._key(student, num_steps)] = curve
        with self._world.agreed():
            if self._world.is_main:
                content = {key: asdict(one) for key, one in self._curves.items()}
                write_atomically(self._path, json.dumps(content, allow_nan=False) + "\n")

    def remove(self) -> None:
        """Delete the file, on the main rank alone; its curves stand in the results."""
        self._path.unlink(missing_ok=True)

    def _key(self, student: str, num_steps: int) -> str:
        # What the main rank sees decides: the clocks of file systems differ.
        return self._world.from_main(
            digest({**self._settings, "student": describe_weights(student), "num_steps": num_steps})
        )

    def _read(self) -> dict[str, ExposureBias]:
        try:
            return _FORMAT.validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            raise UserError(f"{self._path}: cannot be read; delete it to measure all students again") from None
