"""Tables where there is no terminal."""

import pytest

from evaluation.intervals import Estimate
from evaluation.student_friendliness.page import print_table
from evaluation.student_friendliness.summary import Column, Distance, RowSet
from evaluation.terminal import results_console

NUMBER = Estimate(value=1234.0, low=0.0, high=2000.0)
DISTANCE = Distance(forward_kl=NUMBER, reverse_kl=NUMBER)
COLUMN = Column(initial=DISTANCE, final=DISTANCE, rougeL=NUMBER, response_tokens=NUMBER)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")


def test_a_log_is_as_wide_as_a_table_needs(capsys: pytest.CaptureFixture[str]) -> None:
    results_console().print("x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"


def test_a_terminal_has_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert results_console().width == 60


def test_a_table_in_a_log_keeps_its_names_and_digits(capsys: pytest.CaptureFixture[str]) -> None:
    name = "rows-that-were-trained-on"
    rows = RowSet(
        data="rows.jsonl",
        num_rows=10,
        num_tokens=100,
        dropped_rows=0,
        without_prompt=COLUMN,
        with_prompt=COLUMN,
        difference=COLUMN,
    )
    print_table({name: rows})
    lines = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert len(lines) == 3
    assert all(line.count("1234") == 5 for line in lines)
