"""An evaluation finds the training that its model belongs to."""

import os
from pathlib import Path

import pytest

from evaluation.report.matching import match_models
from evaluation.report.models import Model, column_of, count_parameters
from evaluation.report.outputs import find_outputs
from tests.unit.evaluation.report_inputs import write_evaluation, write_training

SCORES = {"mine": [[1.0, 2.0], [3.0, 4.0]]}


def models_in(directory: Path) -> list[Model]:
    outputs = find_outputs([directory])
    return match_models(outputs.evaluations, outputs.trainings)


def names(directory: Path) -> list[tuple[str, str]]:
    return [(model.name, model.role) for model in models_in(directory)]


def test_a_student_belongs_to_the_run_that_its_model_lies_in(tmp_path: Path) -> None:
    for name in "ab":
        write_training(tmp_path / "runs" / name)
        write_evaluation(tmp_path / "scores" / f"of-{name}", model=tmp_path / "runs" / name / "final", scores=SCORES)
    found = models_in(tmp_path)
    assert [(model.name, model.role, model.method) for model in found] == [
        ("a", "student", "PromptKD"), ("b", "student", "PromptKD")
    ]  # fmt: skip
    assert [model.run.name for model in found if model.run is not None] == ["a", "b"]


def test_the_innermost_of_nested_runs_counts(tmp_path: Path) -> None:
    write_training(tmp_path / "a")
    write_training(tmp_path / "a" / "b")
    write_evaluation(tmp_path / "scores", model=tmp_path / "a" / "b" / "final", scores=SCORES)
    assert names(tmp_path) == [("b", "student")]


def test_a_path_relative_to_here_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_training(tmp_path / "runs" / "a")
    write_evaluation(tmp_path / "scores", model="runs/a/final", scores=SCORES)
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path) == [("a", "student")]


def test_a_run_that_was_moved_is_known_by_its_run_dir(tmp_path: Path) -> None:
    write_training(tmp_path / "copied", run={"dir": "/cluster/runs/a"})
    write_evaluation(tmp_path / "scores", model="/cluster/runs/a/best", scores=SCORES)
    assert names(tmp_path) == [("copied", "student")]
    # Two copies of one run: it could be either.
    write_training(tmp_path / "again", run={"dir": "/cluster/runs/a"})
    assert names(tmp_path) == [("scores", "other")]


def test_a_link_to_a_run_is_the_run(tmp_path: Path) -> None:
    write_training(tmp_path / "runs" / "a")
    os.symlink(tmp_path / "runs", tmp_path / "link")
    write_evaluation(tmp_path / "scores", model=tmp_path / "link" / "a" / "final", scores=SCORES)
    assert names(tmp_path) == [("a", "student")]


def test_teacher_start_and_others_are_told_apart(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a", model={"teacher": "hub/teacher", "student": "hub/start"})
    for place, model in (("z", "hub/teacher"), ("y", "hub/start"), ("x", "hub/other"), ("w", str(run / "final"))):
        write_evaluation(tmp_path / place, model=model, scores=SCORES)
    prompt = run / "final" / "soft_prompt.safetensors"
    write_evaluation(tmp_path / "v", model="hub/teacher", soft_prompt=prompt, scores=SCORES)
    assert names(tmp_path) == [
        ("teacher", "teacher"),
        ("teacher with the prompt of a", "teacher with prompt"),
        ("student before training", "start"),
        ("a", "student"),
        ("x", "other"),
    ]


def test_a_teacher_that_was_trained_here_is_the_teacher(tmp_path: Path) -> None:
    teacher = write_training(tmp_path / "big", method="sft", model={"teacher": None, "student": "hub/big"})
    write_training(tmp_path / "small", model={"teacher": str(teacher / "final")})
    write_evaluation(tmp_path / "scores", model=teacher / "final", scores=SCORES)
    assert names(tmp_path) == [("big", "teacher")]


def test_several_models_of_a_run_have_names_of_their_own(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    write_evaluation(tmp_path / "sampled", model=run / "final", scores=SCORES)
    write_evaluation(tmp_path / "best", model=run / "best", scores=SCORES)
    assert [name for name, _ in names(tmp_path)] == ["a, best", "a, final"]
    write_evaluation(tmp_path / "greedy", model=run / "final", scores=SCORES, greedy=True)
    assert [name for name, _ in names(tmp_path)] == ["a, best", "a (greedy)", "a (sampled)"]


def test_evaluations_of_one_model_on_different_benchmarks_are_one(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    write_evaluation(tmp_path / "one", model=run / "final", scores={"vicuna": [[1.0, 2.0]]})
    write_evaluation(tmp_path / "two", model=run / "final", scores={"mine": [[3.0, 4.0]]})
    (model,) = models_in(tmp_path)
    assert {column: one.directory.name for column, one in model.scored.items()} == {"Vicuna": "one", "mine": "two"}


@pytest.mark.parametrize(
    ("name", "among", "column"),
    [
        ("s_ni", [], "S-NI"),
        ("S-NI", [], "S-NI"),
        ("dolly", [], "Dolly"),
        ("dolly_test", [], "Dolly"),
        ("dolly_validation", [], "Dolly (validation)"),
        ("dolly", ["dolly", "dolly_test"], "dolly"),
        ("mine", ["mine", "yours"], "mine"),
    ],
)
def test_benchmarks_of_the_paper_get_its_columns(name: str, among: list[str], column: str) -> None:
    assert column_of(name, among=among) == column


def test_parameters_are_counted_without_the_prompt(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a", weights=11)
    assert count_parameters(run / "final") == 11
    assert count_parameters(run) is None
    (run / "final" / "model.safetensors").write_bytes(b"torn")
    assert count_parameters(run / "final") is None
