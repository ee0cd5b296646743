"""Finds the outputs of the toolkit's commands in directories and below, and recognises them by their files."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.report.training import TrainingRun, read_text, read_training
from evaluation.short_names import short_names
from kd.errors import UserError

# For each kind of output, the files that its directory has, the results first, and the keys that results must have.
_KINDS = {
    "training": (("metrics.jsonl", "config.yaml"), ()),
    "evaluation": (("results.json", "generations"), ("model", "soft_prompt", "benchmarks")),
    "exposure bias": (("exposure_bias.json",), ("teacher", "data", "num_requests", "students", "progress")),
    "student-friendliness": (("student_friendliness.json",), ("sets",)),
    "judge": (("judge.json",), ("judge", "scores")),
    "bench": (("cost.json",), ("preset_name", "machine", "costs")),
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
    evaluations: list[Output]
    exposure_bias: list[Output]
    friendliness: list[Output]
    judgements: list[Output]
    costs: list[Output]


def find_outputs(directories: Sequence[Path]) -> Outputs:
    """Read all outputs in `directories` and below them.

    Below an output nothing is looked for, except below a training, where its evaluations may be.

    Raises:
        UserError: a directory without outputs, or a broken file.
    """
    found: dict[str, dict[Path, Path]] = {kind: {} for kind in _KINDS}
    for directory in directories:
        if not directory.is_dir():
            raise UserError(f"--runs {directory}: is not a directory; give outputs of the toolkit's commands")
        outputs = list(_walk(directory))
        if not outputs:
            expected = "; ".join(f"{' and '.join(names)} ({kind})" for kind, (names, _) in _KINDS.items())
            raise UserError(f"--runs {directory}: has no outputs, in it or below; expected {expected}")
        for kind, place in outputs:
            found[kind].setdefault(place.resolve(), place)
    named = {kind: (list(places.values()), short_names(list(places.values()))) for kind, places in found.items()}

    def read(kind: str) -> list[Output]:
        return [
            Output(directory=place, name=name, results=_read_results(place, kind=kind))
            for place, name in zip(*named[kind], strict=True)
        ]

    return Outputs(
        trainings=[read_training(place, name=name) for place, name in zip(*named["training"], strict=True)],
        evaluations=read("evaluation"),
        exposure_bias=read("exposure bias"),
        friendliness=read("student-friendliness"),
        judgements=read("judge"),
        costs=read("bench"),
    )


def _read_results(directory: Path, *, kind: str) -> dict[str, Any]:
    files, required = _KINDS[kind]
    path = directory / files[0]
    try:
        results = json.loads(read_text(path))
    except ValueError:
        raise UserError(f"{path}: is not JSON; write it again, or give another --runs") from None
    lacking = [key for key in required if not isinstance(results, dict) or key not in results]
    if lacking:
        raise UserError(f"{path}: has no {lacking[0]}; write it again with this version of the toolkit")
    return dict(results)


def _walk(directory: Path) -> Iterator[tuple[str, Path]]:
    """Kinds and places of the outputs in `directory` and below."""
    try:
        entries = {entry.name: entry for entry in directory.iterdir()}
    except OSError as error:
        raise UserError(f"{directory}: cannot be read ({error.strerror}); give another --runs") from None
    kinds = [kind for kind, (names, _) in _KINDS.items() if all(name in entries for name in names)]
    yield from ((kind, directory) for kind in kinds)
    if kinds and "training" not in kinds:
        return
    for name in sorted(entries):
        skipped = name.startswith(".") or entries[name].is_symlink() or (kinds and name in _WITHOUT_OUTPUTS)
        if entries[name].is_dir() and not skipped:
            yield from _walk(entries[name])
