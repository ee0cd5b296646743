"""A picture of a run's metrics."""

import json
from pathlib import Path

import pytest

from evaluation.curves import main


@pytest.fixture
def run(tmp_path: Path) -> Path:
    records = [{"step": step, "student_kd": 1 / step} for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def test_a_picture_is_written(run: Path) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--run", str(run), "--metrics", "student_kd", "--out", str(run / "a.svg")]) == 0
    assert "student_kd" in (run / "a.svg").read_text() or (run / "a.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--metrics", "loss"], "the run has no loss; it has student_kd"), (["--run", "nowhere"], "has no metrics.jsonl")],
)
def test_mistakes_are_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--run", str(run), "--out", str(run / "a.png"), *arguments]) == 2
    assert message in capsys.readouterr().err
