"""Finds outputs of the toolkit's commands in directories, and tells them apart by their files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from evaluation.report.formats import (
    CostResults,
    EvaluationResults,
    ExposureBiasResults,
    FriendlinessResults,
    JudgeResults,
    read_json,
)
from evaluation.report.training import CONFIG_FILE, TrainingRun, read_training
from evaluation.short_names import short_names
from kd.errors import UserError
from kd.train.metric_log import FILE_NAME

T = TypeVar("T")

GENERATIONS = "generations"
# A directory is an output if it has all of the files.
_SIGNS = {
    "training": (CONFIG_FILE, FILE_NAME),
    "evaluation": ("results.json", GENERATIONS),
    "exposure bias": ("exposure_bias.json",),
    "student-friendliness": ("student_friendliness.json",),
    "judge": ("judge.json",),
    "cost": ("cost.json",),
}
# Of a run directory; they hold weights.
_WITHOUT_OUTPUTS = frozenset({"best", "checkpoints", "exports", "final", "tensorboard"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Output(Generic[T]):
    """The results in a directory; `name` tells it from the others of its kind."""

    directory: Path
    name: str
    results: T


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """Everything that was found, in the order of --runs, and by name within one of them."""

    trainings: tuple[TrainingRun, ...]
    evaluations: tuple[Output[EvaluationResults], ...]
    exposure_biases: tuple[Output[ExposureBiasResults], ...]
    friendliness: tuple[Output[FriendlinessResults], ...]
    judgements: tuple[Output[JudgeResults], ...]
    costs: tuple[Output[CostResults], ...]


def find_outputs(directories: Sequence[Path]) -> Outputs:
    """Read all outputs in `directories` and below them.

    Below an output nothing is looked for, except below a training, where its evaluations may be.

    Raises:
        UserError: a directory without outputs, or a broken file.
    """
    found: dict[str, list[Path]] = {kind: [] for kind in _SIGNS}
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"--runs {directory}: is no directory; give outputs of the toolkit's commands")
        outputs = list(_walk(directory))
        if not outputs:
            looked_for = "; ".join(f"{' and '.join(names)} ({kind})" for kind, names in _SIGNS.items())
            raise UserError(f"--runs {directory}: no output there or below; looked for {looked_for}")
        for kind, place in outputs:
            if place.resolve() not in (other.resolve() for other in found[kind]):
                found[kind].append(place)
    return Outputs(
        trainings=tuple(
            read_training(place, name=name)
            for place, name in zip(found["training"], short_names(found["training"]), strict=True)
        ),
        evaluations=_read(found["evaluation"], lambda place: read_json(place / "results.json", EvaluationResults)),
        exposure_biases=_read(
            found["exposure bias"], lambda place: read_json(place / "exposure_bias.json", ExposureBiasResults)
        ),
        friendliness=_read(
            found["student-friendliness"],
            lambda place: read_json(place / "student_friendliness.json", FriendlinessResults),
        ),
        judgements=_read(found["judge"], lambda place: read_json(place / "judge.json", JudgeResults)),
        costs=_read(found["cost"], lambda place: read_json(place / "cost.json", CostResults)),
    )


def _read(places: Sequence[Path], read: Callable[[Path], T]) -> tuple[Output[T], ...]:
    return tuple(
        Output(directory=place, name=name, results=read(place))
        for place, name in zip(places, short_names(places), strict=True)
    )


def _walk(directory: Path) -> Iterator[tuple[str, Path]]:
    """Kinds and places of the outputs in `directory` and below."""
    try:
        entries = {entry.name: entry for entry in directory.iterdir()}
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror}); give another --runs") from None
    kinds = [kind for kind, names in _SIGNS.items() if all(name in entries for name in names)]
    yield from ((kind, directory) for kind in kinds)
    if kinds and "training" not in kinds:
        return
    for name in sorted(entries):
        entry = entries[name]
        skipped = name.startswith(".") or entry.is_symlink() or (kinds and name in _WITHOUT_OUTPUTS)
        if entry.is_dir() and not skipped:
            yield from _walk(entry)
