"""The report finds the toolkit's outputs by their files, and says what is wrong with them in one line."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from evaluation.bench.machine import describe_machine
from evaluation.bench.memory import PeakMemory
from evaluation.bench.report import CostReport
from evaluation.bench.summary import Case, StepCost
from evaluation.judge.session import Judge
from evaluation.report import formats
from evaluation.report.outputs import find_outputs
from evaluation.report.training import SCORE, read_training
from kd.errors import UserError
from tests.unit.evaluation.report_inputs import (
    write_cost,
    write_evaluation,
    write_exposure_bias,
    write_friendliness,
    write_judgement,
    write_training,
)

CONFIG = "model: {student: s}\ndata: {train: t}\nrun: {dir: d}\n"


def test_every_kind_is_found_below_a_directory(tmp_path: Path) -> None:
    write_training(tmp_path / "runs" / "a")
    write_evaluation(tmp_path / "runs" / "a" / "evaluation", model="m", scores={"x": [[1.0, 2.0]]})
    write_exposure_bias(tmp_path / "runs" / "a" / "exposure_bias", names=["a"])
    write_friendliness(tmp_path / "more" / "friendliness")
    write_judgement(tmp_path / "more" / "judge", a=7)
    write_cost(tmp_path / "cost")
    found = find_outputs([tmp_path])
    kinds = (found.exposure_biases, found.friendliness, found.judgements, found.costs, found.evaluations)
    assert [run.name for run in found.trainings] == ["a"]
    assert [[output.directory.name for output in kind] for kind in kinds] == [
        ["exposure_bias"], ["friendliness"], ["judge"], ["cost"], ["evaluation"]
    ]  # fmt: skip


def test_nothing_is_looked_for_below_a_measurement_or_among_weights(tmp_path: Path) -> None:
    # A measurement of costs leaves runs behind that nobody wants to see.
    write_training(write_cost(tmp_path / "cost") / "runs" / "promptkd-zero3")
    write_training(write_training(tmp_path / "a") / "checkpoints" / "step-1")
    assert [run.directory.name for run in find_outputs([tmp_path]).trainings] == ["a"]


def test_below_a_training_that_is_also_a_measurement_its_evaluations_are_found(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    write_evaluation(run / "evaluation", model="m", scores={"x": [[1.0, 2.0]]})
    (write_cost(tmp_path / "cost") / "cost.json").rename(run / "cost.json")
    found = find_outputs([run])
    assert [len(kind) for kind in (found.trainings, found.costs, found.evaluations)] == [1, 1, 1]


def test_a_directory_named_twice_counts_once_and_the_order_is_the_callers(tmp_path: Path) -> None:
    for name in "abc":
        write_training(tmp_path / name)
    found = find_outputs([tmp_path / "c", tmp_path, tmp_path / "b" / ".." / "a"])
    assert [run.name for run in found.trainings] == ["c", "a", "b"]


@pytest.mark.parametrize("kind", ["nothing", "weights", "file"])
def test_a_directory_without_outputs_is_refused_with_what_was_looked_for(tmp_path: Path, kind: str) -> None:
    place = tmp_path / kind
    if kind == "file":
        place.write_text("")
        expected = "is no directory"
    else:
        place.mkdir()
        expected = r"looked for config.yaml and metrics.jsonl \(training\); results.json and generations \(evaluation\)"
        expected += r"; exposure_bias.json .*; judge.json \(judge\); cost.json \(cost\)"
    if kind == "weights":
        (place / "config.json").write_text("{}")
    write_training(tmp_path / "good")
    with pytest.raises(UserError, match=f"--runs {place}: .*{expected}"):
        find_outputs([tmp_path / "good", place])


def test_a_run_that_is_still_written_can_be_read(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "step_sec')
    assert read_training(run, name="a").num_steps == 4
    (run / "metrics.jsonl").write_text("")
    fresh = read_training(run, name="a")
    assert (fresh.num_steps, fresh.seconds, fresh.peak_bytes, fresh.best) == (0, None, None, None)


def test_time_and_best_step_of_a_run(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a")
    records = [
        {"step": step, "step_seconds": 2.0, "peak_memory_bytes": 1, SCORE: score}
        for step, score in ((5, 1.0), (10, 3.0), (15, 3.0))
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    training = read_training(run, name="a")
    # A line speaks for all steps since the one before.
    assert training.seconds_at == {5: 10.0, 10: 20.0, 15: 30.0}
    assert training.best is not None and training.best["step"] == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a/metrics.jsonl", "loss 3\n", "'loss 3' is not what a training writes (step, step_seconds"),
        ("a/metrics.jsonl", '{"step": 1}\n', "is not what a training writes"),
        ("a/config.yaml", CONFIG, "a/config.yaml: method promptkd needs model.teacher"),
        ("a/config.yaml", f"{CONFIG}modle: 3\n", "unknown key modle"),
        ("a/environment.json", "no", "a/environment.json: 'no' is not what a training writes (a JSON object)"),
        ("e/results.json", "{}", "e/results.json: model: field required; make it again"),
        ("e/results.json", "[", "e/results.json: the whole file: invalid json"),
        ("x/exposure_bias.json", '{"version": 2}', "x/exposure_bias.json: version: input should be 1"),
        ("c/cost.json", b"\xff\xfe", "c/cost.json: is no UTF-8 text"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    write_training(tmp_path / "a")
    write_evaluation(tmp_path / "e", model="m", scores={"x": [[1.0, 2.0]]})
    write_exposure_bias(tmp_path / "x", names=["a"])
    write_cost(tmp_path / "c")
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError) as caught:
        find_outputs([tmp_path])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_read_of_costs_and_judgements_is_written() -> None:
    for read, written in (
        (formats.CostResults, CostReport),
        (formats.CostEntry, StepCost),
        (formats.CostCase, Case),
        (formats.PeakBytes, PeakMemory),
        (formats.JudgeModel, Judge),
    ):
        assert {entry.name for entry in fields(read)} <= {entry.name for entry in fields(written)}
    assert {entry.name for entry in fields(formats.CostMachine)} <= set(describe_machine(num_ranks=1))
