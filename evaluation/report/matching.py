"""Whose evaluation it is: a student of one of the trainings, where it started from, its teacher, or another model.

A model belongs to the training in whose run directory it lies: `evaluate.py --model runs/a/final` to runs/a. The run
directory is the one that was given, or where none of these holds the model, the `run.dir` of a configuration, so that
runs which were copied from another machine are recognised too. A model that a training names as its teacher is the
teacher, wherever it lies. Evaluations of one model on different benchmarks count as one.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from evaluation.report.formats import EvaluationResults
from evaluation.report.models import ROLES, Model, Role, count_parameters
from evaluation.report.outputs import Output
from evaluation.report.training import TrainingRun


def match_models(evaluations: Sequence[Output[EvaluationResults]], trainings: Sequence[TrainingRun]) -> list[Model]:
    """The evaluated models: teachers first, then where students started from, students, and others."""
    models = [_match(own, trainings) for own in _of_one_model(evaluations)]
    named = [replace(model, name=name) for model, name in zip(models, _names(models), strict=True)]
    places = [run.name for run in trainings]
    return sorted(
        named, key=lambda model: (ROLES.index(model.role), -1 if model.run is None else places.index(model.run.name))
    )


def _of_one_model(evaluations: Sequence[Output[EvaluationResults]]) -> list[list[Output[EvaluationResults]]]:
    """Evaluations of one model stand together, unless they share a benchmark: then they decoded it differently."""
    groups: list[list[Output[EvaluationResults]]] = []
    for evaluation in evaluations:
        results = evaluation.results
        for group in groups:
            first = group[0].results
            seen = {name for other in group for name in other.results.benchmarks}
            is_same = _is_same(first.model, results.model) and first.soft_prompt == results.soft_prompt
            if is_same and not seen & set(results.benchmarks):
                group.append(evaluation)
                break
        else:
            groups.append([evaluation])
    return groups


def _match(evaluations: Sequence[Output[EvaluationResults]], trainings: Sequence[TrainingRun]) -> Model:
    results = evaluations[0].results
    path = results.model if results.soft_prompt is None else results.soft_prompt
    run, part = _run_of(path, trainings)
    name = evaluations[0].name if run is None else run.name
    role: Role = "other" if run is None else "student"
    if results.soft_prompt is not None:
        role, name, part = "teacher with prompt", f"teacher with the prompt of {name}", None
    elif any(_is_same(path, one.config.model.teacher) for one in trainings):
        role, name = "teacher", "teacher" if run is None else run.name
    elif run is None and any(_is_same(path, one.config.model.student) for one in trainings):
        role, name = "start", "student before training"
    return Model(
        name=name,
        role=role,
        run=run,
        part=part,
        evaluations=tuple(evaluations),
        num_parameters=count_parameters(Path(results.model)),
    )


def _run_of(path: str, trainings: Sequence[TrainingRun]) -> tuple[TrainingRun | None, str | None]:
    """The training that a model lies in, and where there; of nested ones the innermost."""
    for directories in ([str(run.directory) for run in trainings], [run.config.run.dir for run in trainings]):
        inside = [
            (len(_place(directory).parts), run, _place(path).relative_to(_place(directory)))
            for directory, run in zip(directories, trainings, strict=True)
            if _place(path).is_relative_to(_place(directory))
        ]
        innermost = [entry for entry in inside if entry[0] == max(depth for depth, _, _ in inside)]
        # Copies of one run name the same run.dir: then nobody can say which of them it was.
        if len(innermost) == 1:
            return innermost[0][1], str(innermost[0][2])
    return None, None


def _place(path: str) -> PurePath:
    return PurePath(os.path.realpath(path))


def _is_same(path: str, other: str | None) -> bool:
    return other is not None and _place(path) == _place(other)


def _names(models: Sequence[Model]) -> Iterator[str]:
    """A name of its own for each model: with its part of the run, and if that is not enough, of its evaluation."""
    for model in models:
        rivals = [other for other in models if other.name == model.name and other is not model]
        if not rivals:
            yield model.name
        elif model.part is not None and all(other.part != model.part for other in rivals):
            yield f"{model.name}, {model.part}"
        else:
            yield f"{model.name} ({model.evaluations[0].name})"
