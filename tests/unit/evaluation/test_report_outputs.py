"""The report finds outputs by their files, matches evaluations to trainings, and names a broken file in one line."""

import json
import os
from pathlib import Path

import pytest

from evaluation.report.models import Model, match_models
from evaluation.report.outputs import find_outputs
from evaluation.report.training import read_training
from kd.errors import UserError
from tests.unit.evaluation.report_inputs import (
    write_cost,
    write_evaluation,
    write_exposure_bias,
    write_friendliness,
    write_judgement,
    write_training,
)

SCORES = {"mine": [[1.0, 2.0], [3.0, 4.0]]}


def models_in(directory: Path) -> list[Model]:
    outputs = find_outputs([directory])
    return match_models(outputs.results["evaluation"], outputs.trainings)


def names(directory: Path) -> list[tuple[str, str]]:
    return [(model.name, model.role) for model in models_in(directory)]


def test_every_kind_is_found_below_a_directory(tmp_path: Path) -> None:
    write_evaluation(write_training(tmp_path / "runs" / "a") / "evaluation", model="m", scores=SCORES)
    write_exposure_bias(tmp_path / "runs" / "a" / "exposure_bias", names=["a"])
    write_friendliness(tmp_path / "more" / "friendliness")
    write_judgement(tmp_path / "more" / "judge", a=7)
    write_cost(tmp_path / "cost")
    found = find_outputs([tmp_path])
    assert [run.name for run in found.trainings] == ["a"]
    assert {kind: [output.name for output in outputs] for kind, outputs in found.results.items()} == {
        "evaluation": ["evaluation"],
        "exposure_bias": ["exposure_bias"],
        "student_friendliness": ["friendliness"],
        "judge": ["judge"],
        "bench": ["cost"],
    }


def test_nothing_is_looked_for_below_a_measurement_or_among_weights(tmp_path: Path) -> None:
    # evaluation.bench leaves runs behind.
    write_training(write_cost(tmp_path / "cost") / "runs" / "promptkd-zero3")
    write_training(write_training(tmp_path / "a") / "checkpoints" / "step-1")
    assert [run.name for run in find_outputs([tmp_path]).trainings] == ["a"]


def test_a_directory_named_twice_counts_once_and_the_order_is_the_callers(tmp_path: Path) -> None:
    for name in "abc":
        write_training(tmp_path / name)
    found = find_outputs([tmp_path / "c", tmp_path, tmp_path / "b" / ".." / "a"])
    assert [run.name for run in found.trainings] == ["c", "a", "b"]


def test_an_unfinished_run_can_be_read(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "step_sec')
    assert read_training(run, name="a").num_steps == 4
    (run / "metrics.jsonl").write_text("")
    assert (read_training(run, name="a").num_steps, read_training(run, name="a").seconds) == (0, None)


def test_a_record_counts_for_all_steps_since_the_record_before_it(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    records = [{"step": step, "step_seconds": 2.0, "peak_memory_bytes": 1} for step in (5, 10, 20)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert list(read_training(run, name="a").metrics["seconds"]) == [10.0, 20.0, 40.0]


@pytest.mark.parametrize(("method", "label"), [("gkd", "gkd"), ("new", "new"), ("my_package.methods:Skewed", "Skewed")])
def test_the_label_of_a_method_comes_from_the_configuration(tmp_path: Path, method: str, label: str) -> None:
    assert read_training(write_training(tmp_path / "a", method=method), name="a").method == label


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a/metrics.jsonl", "loss 3\n", "a/metrics.jsonl:1: expected a JSON object, found 'loss 3'"),
        ("a/config.yaml", "model: [", "a/config.yaml: expected a YAML mapping"),
        ("a/config.yaml", "3", "a/config.yaml: expected a YAML mapping"),
        ("a/environment.json", "no", "a/environment.json: expected a JSON object"),
        ("e/results.json", "{}", "e/results.json: has no model; write it again"),
        ("e/results.json", "[]", "e/results.json: expected a JSON object"),
        ("x/exposure_bias.json", "[", "x/exposure_bias.json: expected a JSON object"),
        ("c/cost.json", b"\xff\xfe", "c/cost.json: expected a JSON object"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    write_training(tmp_path / "a")
    write_evaluation(tmp_path / "e", model="m", scores=SCORES)
    write_exposure_bias(tmp_path / "x", names=["a"])
    write_cost(tmp_path / "c")
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        find_outputs([tmp_path])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_student_belongs_to_the_innermost_run_that_holds_it(tmp_path: Path) -> None:
    write_training(tmp_path / "a")
    write_training(tmp_path / "a" / "b", weights=11)
    write_evaluation(tmp_path / "scores", model=tmp_path / "a" / "b" / "final", scores=SCORES)
    (model,) = models_in(tmp_path)
    assert (model.name, model.role, model.method, model.part) == ("b", "student", "promptkd", "final")
    # Those of the prompt beside it do not count.
    assert model.num_parameters == 11


def test_links_and_paths_relative_to_the_working_directory_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_training(tmp_path / "runs" / "a")
    os.symlink(tmp_path / "runs", tmp_path / "link")
    write_evaluation(tmp_path / "scores", model="link/a/final", scores=SCORES)
    monkeypatch.chdir(tmp_path)
    assert names(tmp_path) == [("a", "student")]


def test_a_run_that_was_moved_is_known_by_its_run_dir(tmp_path: Path) -> None:
    write_training(tmp_path / "copied", run={"dir": "/cluster/runs/a"})
    write_evaluation(tmp_path / "scores", model="/cluster/runs/a/best", scores=SCORES)
    assert names(tmp_path) == [("copied", "student")]
    # Two copies of one run: it could be either.
    write_training(tmp_path / "again", run={"dir": "/cluster/runs/a"})
    assert names(tmp_path) == [("scores", "other")]


def test_roles_of_models(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a", model={"teacher": "hub/teacher", "student": "hub/start"})
    for name, model in (("z", "hub/teacher"), ("y", "hub/start"), ("x", "hub/other"), ("w", str(run / "final"))):
        write_evaluation(tmp_path / name, model=model, scores=SCORES)
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


def test_several_models_of_a_run_have_unique_names(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    write_evaluation(tmp_path / "sampled", model=run / "final", scores=SCORES)
    write_evaluation(tmp_path / "best", model=run / "best", scores=SCORES)
    assert [name for name, _ in names(tmp_path)] == ["a, best", "a, final"]
    write_evaluation(tmp_path / "greedy", model=run / "final", scores=SCORES, greedy=True)
    assert [name for name, _ in names(tmp_path)] == ["a, best", "a (greedy)", "a (sampled)"]


def test_evaluations_of_one_model_on_different_benchmarks_are_merged(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    write_evaluation(tmp_path / "one", model=run / "final", scores={"vicuna": [[1.0, 2.0]]})
    write_evaluation(tmp_path / "two", model=run / "final", scores={"mine": [[3.0, 4.0]]})
    (model,) = models_in(tmp_path)
    assert {name: model.directory(name).name for name in model.benchmarks} == {"vicuna": "one", "mine": "two"}
