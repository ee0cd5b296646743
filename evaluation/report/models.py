"""The evaluated models, and which training each one belongs to.

A model belongs to the training in whose run directory it lies: `evaluate.py --model runs/a/final` to runs/a. If no
given directory holds it, the `run.dir` of the configurations counts, so that runs copied from another machine are
recognised. A model that a training names as its teacher is the teacher, wherever it lies. Evaluations of one model on
different benchmarks are merged.
"""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal, get_args

from safetensors import SafetensorError, safe_open

from evaluation.report.outputs import Output
from evaluation.report.training import TrainingRun
from kd.models.soft_prompt import FILE_NAME as PROMPT_FILE

Entry = dict[str, Any]
"""A part of results.json."""
Role = Literal["teacher", "teacher with prompt", "start", "student", "other"]
"""In the order of the page."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """An evaluated model; no two of its evaluations share a benchmark."""

    name: str
    role: Role
    run: TrainingRun | None
    """The training that made it, or its prompt."""
    part: str | None
    """Its path within the run directory, such as final."""
    evaluations: list[Output]
    num_parameters: int | None
    """Without prompts and adapters; None if its weights are not there."""

    @property
    def is_student(self) -> bool:
        return self.role not in ("teacher", "teacher with prompt")

    @property
    def method(self) -> str:
        """The method that trained it; empty if no given training did."""
        return self.run.method if self.run is not None and self.role == "student" else ""

    @property
    def benchmarks(self) -> dict[str, Entry]:
        """Results by benchmark."""
        return {name: entry for one in self.evaluations for name, entry in one.results["benchmarks"].items()}

    def directory(self, benchmark: str) -> Path:
        """The --out of evaluate.py that holds a benchmark."""
        return next(one.directory for one in self.evaluations if benchmark in one.results["benchmarks"])


def match_models(evaluations: Sequence[Output], trainings: Sequence[TrainingRun]) -> list[Model]:
    """The evaluated models: teachers first, then where students started from, students, and others."""
    groups: list[list[Output]] = []
    for evaluation in evaluations:
        # Evaluations that share a benchmark differ in their decoding: they are not merged.
        group = next((group for group in groups if all(_can_merge(one, evaluation) for one in group)), [])
        if not group:
            groups.append(group)
        group.append(evaluation)
    models = [_match(group, trainings) for group in groups]
    named = [replace(model, name=name) for model, name in zip(models, _names(models), strict=True)]
    roles, runs = get_args(Role), [None, *trainings]
    return sorted(named, key=lambda model: (roles.index(model.role), runs.index(model.run)))


def metrics_of(benchmark: Entry) -> dict[str, Entry]:
    """The metrics of a benchmark's entry: whatever has a value for each seed."""
    return {name: value for name, value in benchmark.items() if isinstance(value, dict) and "per_seed" in value}


def count_values(path: Path) -> int:
    """Values in a safetensors file; 0 if it is not one."""
    try:
        with safe_open(path, framework="np") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))
    except (OSError, SafetensorError):
        return 0


def _can_merge(one: Output, other: Output) -> bool:
    mine, its = one.results, other.results
    is_same = _is_same(mine["model"], its["model"]) and mine["soft_prompt"] == its["soft_prompt"]
    return is_same and not set(mine["benchmarks"]) & set(its["benchmarks"])


def _match(evaluations: list[Output], trainings: Sequence[TrainingRun]) -> Model:
    results = evaluations[0].results
    path = results["soft_prompt"] or results["model"]
    run, part = _run_of(path, trainings)
    name = evaluations[0].name if run is None else run.name
    role: Role = "other" if run is None else "student"
    if results["soft_prompt"] is not None:
        role, name, part = "teacher with prompt", f"teacher with the prompt of {name}", None
    elif any(_is_same(path, one.settings.get("model.teacher")) for one in trainings):
        role, name = "teacher", "teacher" if run is None else run.name
    elif run is None and any(_is_same(path, one.settings.get("model.student")) for one in trainings):
        role, name = "start", "student before training"
    weights = [file for file in sorted(Path(results["model"]).glob("*.safetensors")) if file.name != PROMPT_FILE]
    num_parameters = sum(map(count_values, weights)) or None
    return Model(name=name, role=role, run=run, part=part, evaluations=evaluations, num_parameters=num_parameters)


def _run_of(path: str, trainings: Sequence[TrainingRun]) -> tuple[TrainingRun | None, str | None]:
    """The training that a model lies in, and its path there; of nested trainings the innermost."""
    given = [_real(run.directory) for run in trainings]
    configured = [_real(run.settings.get("run.dir", run.directory)) for run in trainings]
    for directories in (given, configured):
        inside = [pair for pair in zip(directories, trainings, strict=True) if _real(path).is_relative_to(pair[0])]
        depth = max((len(directory.parts) for directory, _ in inside), default=0)
        innermost = [pair for pair in inside if len(pair[0].parts) == depth]
        # Copies of one run have the same run.dir: the model may belong to either.
        if len(innermost) == 1:
            return innermost[0][1], str(_real(path).relative_to(innermost[0][0]))
    return None, None


def _real(path: str | Path) -> PurePath:
    return PurePath(os.path.realpath(path))


def _is_same(path: str, other: str | None) -> bool:
    return other is not None and _real(path) == _real(other)


def _names(models: Sequence[Model]) -> Iterator[str]:
    """A unique name for each model: with its part of the run, or else with the name of its evaluation."""
    for model in models:
        rivals = [other for other in models if other.name == model.name and other is not model]
        if not rivals:
            yield model.name
        elif model.part is not None and all(other.part != model.part for other in rivals):
            yield f"{model.name}, {model.part}"
        else:
            yield f"{model.name} ({model.evaluations[0].name})"
