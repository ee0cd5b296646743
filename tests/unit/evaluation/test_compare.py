"""Paired comparison of two evaluations, against numbers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.compare import main, paired_difference
from evaluation.results import generations_file, write_generations
from tests.unit.evaluation.generations import generation, write_scores


def test_mean_over_seeds_first_then_error_over_rows() -> None:
    a = np.array([[10.0, 20.0, 30.0], [20.0, 40.0, 30.0]])  # rows' means: 15, 30, 30
    b = np.array([[16.0, 20.0, 27.0], [14.0, 34.0, 27.0]])  # rows' means: 15, 27, 27
    # Differences 0, 3, 3: mean 2, variance (4 + 1 + 1) / 2 = 3, error sqrt(3 / 3).
    difference = paired_difference(a, b)
    assert difference.mean == pytest.approx(2.0)
    assert difference.standard_error == pytest.approx(1.0)
    assert difference.z == pytest.approx(2.0)
    assert (difference.num_rows, difference.num_seeds) == (3, 2)


def test_exchange_of_the_models_changes_the_sign() -> None:
    a, b = np.array([[1.0, 4.0]]), np.array([[2.0, 9.0]])
    assert paired_difference(a, b).z == -paired_difference(b, a).z < 0


@pytest.mark.parametrize(("step", "z"), [(0.0, 0.0), (2.0, math.inf), (-2.0, -math.inf)])
def test_equal_differences_have_no_error(step: float, z: float) -> None:
    b = np.array([[1.0, 2.0, 3.0]])
    assert paired_difference(b + step, b).z == z


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (1, 1)])
def test_scores_that_do_not_pair_are_refused(shape: tuple[int, int]) -> None:
    other = (1, 1) if shape == (1, 1) else (1, 3)
    with pytest.raises(ValueError, match="two or more rows in equal shapes"):
        paired_difference(np.zeros(shape), np.zeros(other))


def compare(a: Path, b: Path) -> int:
    return main(["--a", str(a), "--b", str(b), "--benchmark", "test"])


def test_command_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "promptkd", tmp_path / "sft"
    write_scores(a, benchmark="test", by_seed={3: [10.0, 20.0, 30.0], 20: [20.0, 40.0, 30.0]})
    write_scores(b, benchmark="test", by_seed={3: [16.0, 20.0, 27.0], 20: [14.0, 34.0, 27.0]})
    assert compare(a, b) == 0
    expected = "promptkd - sft on test: +2.0 ± 1.0 ROUGE-L (2.0 standard errors, 3 rows, 2 seeds)\n"
    assert capsys.readouterr().out == expected


def test_command_refuses_what_does_not_pair(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = tmp_path / "a"
    write_scores(a, benchmark="test", by_seed={1: [1.0, 2.0]})
    seeds, rows, single = tmp_path / "seeds", tmp_path / "rows", tmp_path / "single"
    write_scores(seeds, benchmark="test", by_seed={2: [1.0, 2.0]})
    write_scores(rows, benchmark="test", by_seed={1: [1.0, 2.0, 3.0]})
    write_scores(single, benchmark="test", by_seed={1: [1.0]})
    cases = [
        (a, tmp_path / "none", "holds no seed-<s>.jsonl"),
        (a, seeds, "has the seeds 1,"),
        (a, rows, "answer different rows"),
        (single, single, "has one row"),
    ]
    for first, second, expected in cases:
        assert compare(first, second) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert message.count("\n") == 1


def test_references_of_the_rows_must_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, reference in (("a", "yes"), ("b", "maybe")):
        rows = [generation(row, reference=reference) for row in range(3)]
        write_generations(generations_file(tmp_path / name / "generations" / "test", 1), rows)
    assert compare(tmp_path / "a", tmp_path / "b") == 2
    assert "answer different rows" in capsys.readouterr().err
