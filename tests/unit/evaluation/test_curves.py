"""A picture of a run's metrics."""

import json
import re
from pathlib import Path

import pytest

from evaluation.analysis.curves import DEFAULT_METRICS, main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = [{"step": step, "student_kd": 1 / step} for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def texts(picture: Path) -> set[str]:
    """What is written in an SVG: letters are drawn as paths, with each text in a comment before its own."""
    return set(re.findall(r"<!-- (.+) -->", picture.read_text()))


def test_a_picture_is_written(run: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--run", str(run), "--metrics", "student_kd", "--out", str(run / "a.svg")]) == 0
    assert {"student_kd", "optimizer step"} <= texts(run / "a.svg")


def test_without_a_choice_the_usual_metrics_of_the_run_are_drawn(run: Path) -> None:
    pytest.importorskip("matplotlib")
    # Methods without a prompt have none of its metrics.
    record = {"step": 1, "grad_norm": 1.0, "student_kd": 1.0, "cross_entropy": 2.0}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert main(["--run", str(run), "--out", str(run / "a.svg")]) == 0
    assert texts(run / "a.svg") & {"grad_norm", *DEFAULT_METRICS} == {"student_kd", "cross_entropy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics", "loss"], "the run has no loss; it has student_kd"),
        (["--run", "nowhere"], "has no metrics.jsonl"),
        (["--out", "a.nonsense"], "a.nonsense: cannot be written (Format 'nonsense' is not supported"),
        (["--out", "/dev/null/a.png"], "/dev/null/a.png: cannot be written"),
        (["--title", "x"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--run", str(run), "--out", str(run / "a.png"), *arguments]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_torn_record_is_left_out_and_a_broken_one_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    metrics, argv = run / "metrics.jsonl", ["--run", str(run), "--out", str(run / "a.png")]
    complete = metrics.read_bytes()
    metrics.write_bytes(complete + b'{"step": 6, "stud')
    assert main(argv) == 0
    for line, expected in ((b'\xff{"step": 6}\n', "expected a JSON object"), (b'{"a": 1}\n', "a record with a step")):
        metrics.write_bytes(complete + line)
        assert main(argv) == 2
        assert f"error: {metrics}:6: expected {expected.removeprefix('expected ')}" in capsys.readouterr().err
