"""The exports that stand for a training, and the messages of the command line."""

import json
from pathlib import Path

import pytest
import yaml

from evaluation.analysis.exposure_bias.__main__ import COMMAND
from evaluation.analysis.exposure_bias.config import course_of_run, find_best_step, nearest_steps
from kd.errors import UserError


def write_run(run: Path, *, records: list[dict[str, float]], exports: tuple[int, ...], start: Path) -> Path:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {"model": {"student": str(start), "teacher": "t"}, "data": {"train": "d"}, "run": {"dir": str(run)}}
    if any("validation/accuracy" in record for record in records):
        config["validation"] = {"metric": "accuracy", "answer_pattern": "x"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for step in exports:
        (run / "exports" / f"step-{step}").mkdir(parents=True)
    (run / "exports" / "step-5.partial").mkdir(parents=True, exist_ok=True)
    return run


VALIDATED = [{"step": step, "validation/rougeL": score} for step, score in ((10, 3.0), (20, 8.0), (30, 8.0), (40, 7.0))]


def test_exports_nearest_to_tenths_of_the_best_step() -> None:
    assert nearest_steps(range(10, 110, 10), best=100) == list(range(10, 110, 10))
    # Tenths of 50: 5 10 15 … 50; of two as near, the earlier.
    assert nearest_steps((10, 20, 30, 40, 50, 60), best=50) == [10, 20, 30, 40, 50]
    assert nearest_steps((4, 16, 99), best=20) == [4, 16]


@pytest.mark.parametrize(
    ("records", "best"),
    [
        (VALIDATED, 20),
        ([{"step": 10, "validation/loss": 2.0}, {"step": 20, "validation/loss": 1.0}, {"step": 30}], 20),
        ([{"step": 10}, {"step": 20}], 20),
        ([{"step": step, "validation/rougeL": 1.0, "validation/accuracy": step} for step in (10, 20)], 20),
    ],
)
def test_the_best_step_is_the_trainers(tmp_path: Path, records: list[dict[str, float]], best: int) -> None:
    run = write_run(tmp_path / "run", records=records, exports=(), start=tmp_path)
    assert find_best_step(run) == best


def test_a_run_that_has_just_begun_has_no_best_step(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records=[], exports=(), start=tmp_path)
    # The first record is being written.
    (run / "metrics.jsonl").write_text('{"step": 1')
    with pytest.raises(UserError, match="metrics.jsonl: has no record yet"):
        find_best_step(run)


def test_a_run_begins_with_its_starting_student_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    for name, start, steps in (("a", "start", [0, 2, 20]), ("b", "gone", [2, 20])):
        run = write_run(tmp_path / name, records=VALIDATED, exports=(2, 20, 40), start=tmp_path / start)
        course = course_of_run(run)
        assert list(course.students) == steps
        assert course.best_step == 20
        assert course.students[20] == str(run / "exports" / "step-20")


def test_a_run_without_exports_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", records=VALIDATED, exports=(), start=tmp_path)
    with pytest.raises(UserError, match="has no exports/step-<n>; train with checkpoints.export_every=N, or name"):
        course_of_run(run)


GOOD = ["--teacher", "t", "--data", "d", "--out", "o"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "nothing to measure"),
        (["--student", "a=x", "--student", "a=y"], "--student: the name a is given twice"),
        (["--checkpoint", "a=x"], "'a' is not NAME:STEP"),
    ],
)
def test_mistakes_on_the_command_line(extra: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        COMMAND.read([*GOOD, *extra])


def test_checkpoints_of_one_name_are_one_course_in_the_order_of_steps() -> None:
    config = COMMAND.read([*GOOD, *(f"--checkpoint={text}" for text in ("a:20=y", "b:5=z", "a:3=x"))])
    courses = config.courses()
    assert list(courses) == ["a", "b"]
    assert list(courses["a"].students.items()) == [(3, "x"), (20, "y")]
