"""Finds the outputs of the toolkit's commands in directories and below, and recognises them by their files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.display import short_names
from evaluation.report.training import TrainingRun, read_object, read_training
from kd.errors import UserError

# The files that a directory of each kind has; the first one holds the results.
_FILES = {
    "training": ("metrics.jsonl", "config.yaml"),
    "evaluation": ("results.json", "generations"),
    "exposure_bias": ("exposure_bias.json",),
    "student_friendliness": ("student_friendliness.json",),
    "judge": ("judge.json",),
    "bench": ("cost.json",),
}
# The keys that results must have.
_REQUIRED = {
    "evaluation": ("model", "soft_prompt", "benchmarks"),
    "exposure_bias": ("teacher", "data", "num_requests", "students", "progress"),
    "student_friendliness": ("sets",),
    "judge": ("judge", "scores"),
    "bench": ("preset_name", "machine", "costs"),
}
# Directories of a run that hold weights.
_WITHOUT_OUTPUTS = frozenset({"best", "checkpoints", "exports", "final", "tensorboard"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Output:
    """The results in one directory; `name` is unique among the outputs of its kind."""

    directory: Path
    name: str
    results: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """Everything that was found, in the order of --runs, and by name within one of them."""

    trainings: list[TrainingRun]
    results: dict[str, list[Output]]
    """By what was measured: evaluation, exposure_bias, student_friendliness, judge or bench."""


def find_outputs(directories: Sequence[Path]) -> Outputs:
    """Read all outputs in `directories` and below them.

    Below an output nothing is looked for, except below a training, where its evaluations may be.

    Raises:
        UserError: a directory without outputs, or a broken file.
    """
    found: dict[str, dict[Path, Path]] = {kind: {} for kind in _FILES}
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"--runs {directory}: is not a directory; give one that holds runs or evaluations")
        outputs = list(_walk(directory))
        if not outputs:
            expected = "; ".join(" and ".join(names) for names in _FILES.values())
            raise UserError(f"--runs {directory}: has no outputs, in it or below; expected one of: {expected}")
        for kind, output in outputs:
            found[kind].setdefault(output.resolve(), output)
    named = {kind: list(zip(short_names(list(of.values())), of.values(), strict=True)) for kind, of in found.items()}
    return Outputs(
        trainings=[read_training(path, name=name) for name, path in named["training"]],
        results={
            kind: [Output(directory=path, name=name, results=_read(path, kind=kind)) for name, path in named[kind]]
            for kind in _REQUIRED
        },
    )


def _read(directory: Path, *, kind: str) -> dict[str, Any]:
    path = directory / _FILES[kind][0]
    results = read_object(path)
    lacking = [key for key in _REQUIRED[kind] if key not in results]
    if lacking:
        raise UserError(f"{path}: has no {lacking[0]}; write it again with this version of the toolkit")
    return results


def _walk(top: Path) -> Iterator[tuple[str, Path]]:
    """Kinds and directories of the outputs in `top` and below; links are not followed."""

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); give another --runs") from None

    for directory, below, files in os.walk(top, onerror=fail):
        kinds = [kind for kind, names in _FILES.items() if {*below, *files}.issuperset(names)]
        yield from ((kind, Path(directory)) for kind in kinds)
        skipped = _WITHOUT_OUTPUTS if kinds else frozenset()
        is_searched = not kinds or "training" in kinds
        below[:] = sorted(name for name in below if is_searched and not name.startswith(".") and name not in skipped)
