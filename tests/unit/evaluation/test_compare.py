"""Paired comparison of two evaluations, against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.compare import bootstrap_means, main, paired_difference
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


def test_bootstrap_of_two_rows_equals_all_that_can_be_drawn() -> None:
    # Differences 1 and 3 are drawn as 1 1, 1 3, 3 1 or 3 3, each as often.
    means = bootstrap_means(np.array([1.0, 3.0]), num_resamples=40_000)
    assert sorted(set(means.tolist())) == [1.0, 2.0, 3.0]
    shares = [np.mean(means == value) for value in (1.0, 2.0, 3.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.01)


def test_bootstrap_does_not_depend_on_how_many_rows_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50)
    at_once = bootstrap_means(values, num_resamples=101)
    monkeypatch.setattr("evaluation.compare._DRAWN_ROWS", 120)
    assert np.array_equal(bootstrap_means(values, num_resamples=101), at_once)


def test_interval_and_p_of_many_rows_are_those_of_a_normal_distribution() -> None:
    # Mean 0.1 and standard deviation 1 over 400 rows: a standard error of 0.05, two of them.
    noise = np.random.default_rng(0).normal(size=400)
    differences = 0.1 + (noise - noise.mean()) / noise.std(ddof=1)
    found = paired_difference(differences[None], np.zeros((1, 400)))
    assert found.z == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05), abs=0.004)
    assert found.p_value == pytest.approx(0.0455, abs=0.01)


def test_p_of_models_that_answer_alike_is_one() -> None:
    same = np.array([[1.0, 2.0, 3.0]])
    assert paired_difference(same, same).p_value == 1.0


def test_p_is_never_zero() -> None:
    b = np.array([[1.0, 2.0, 3.0]])
    assert paired_difference(b + 5, b, num_resamples=999).p_value == pytest.approx(2 / 1000)


def test_command_compares_with_several_on_all_shared_benchmarks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = tmp_path / "promptkd", tmp_path / "sft", tmp_path / "gkd"
    for benchmark in ("one", "two"):
        write_scores(a, benchmark=benchmark, by_seed={3: [10.0, 20.0, 30.0], 20: [20.0, 40.0, 30.0]})
        write_scores(b, benchmark=benchmark, by_seed={3: [16.0, 20.0, 27.0], 20: [14.0, 34.0, 27.0]})
        write_scores(c, benchmark=benchmark, by_seed={3: [10.0, 20.0, 30.0], 20: [20.0, 40.0, 30.0]})
    write_scores(a, benchmark="only", by_seed={3: [1.0, 2.0]})
    out = tmp_path / "comparisons.json"
    assert main(["--a", str(a), "--b", str(b), str(c), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("promptkd - sft on one: +2.00 ± 1.00 ROUGE-L, 95 % interval +0.00 to +3.00, p = 0.0")
    assert lines[0].endswith("(3 rows, 2 seeds)")
    found = json.loads(out.read_text())["comparisons"]
    assert [(row["benchmark"], Path(row["b"]).name) for row in found] == [
        ("one", "sft"),
        ("one", "gkd"),
        ("two", "sft"),
        ("two", "gkd"),
    ]
    assert [row["mean"] for row in found] == pytest.approx([2.0, 0.0, 2.0, 0.0])
    assert found[0]["metric"] == "rougeL"


def test_exact_match_is_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, responses in (("a", ["yes", "yes", "no", "yes"]), ("b", ["yes", "no", "no", "no"])):
        rows = [generation(row, response=response) for row, response in enumerate(responses)]
        write_generations(generations_file(tmp_path / name / "generations" / "test", 1), rows)
    assert main(["--a", str(tmp_path / "a"), "--b", str(tmp_path / "b"), "--metric", "exact_match"]) == 0
    # Two of four rows: 50 points, standard deviation 57.7, error 28.9.
    assert "+50.00 ± 28.87 exact match" in capsys.readouterr().out


def test_directories_without_a_common_benchmark_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write_scores(a, benchmark="one", by_seed={1: [1.0, 2.0]})
    write_scores(b, benchmark="two", by_seed={1: [1.0, 2.0]})
    assert main(["--a", str(a), "--b", str(b)]) == 2
    assert "no benchmark in common" in capsys.readouterr().err


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


def test_directories_of_the_same_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (tmp_path / run / "evaluation" for run in ("A", "B", "C"))
    for directory in (a, b, c):
        write_scores(directory, benchmark="test", by_seed={1: [1.0, 2.0]})
    assert main(["--a", str(a), "--b", str(b), str(c)]) == 0
    pairs = [line.partition(" on ")[0] for line in capsys.readouterr().out.splitlines()]
    assert pairs == ["A/evaluation - B/evaluation", "A/evaluation - C/evaluation"]


@pytest.mark.parametrize("name", [".", "{directory}"])
def test_a_directory_is_refused_as_the_file_to_write(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Before the directories are read: there are none.
    assert main(["--a", "x", "--b", "y", "--out", name.format(directory=tmp_path)]) == 2
    message = capsys.readouterr().err
    assert "is a directory; give the path of a file" in message
    assert message.count("\n") == 1


def test_an_infinite_z_is_null_in_the_file(tmp_path: Path) -> None:
    write_scores(tmp_path / "a", benchmark="test", by_seed={1: [3.0, 4.0]})
    write_scores(tmp_path / "b", benchmark="test", by_seed={1: [1.0, 2.0]})
    out = tmp_path / "comparisons.json"
    assert main(["--a", str(tmp_path / "a"), "--b", str(tmp_path / "b"), "--out", str(out)]) == 0
    [found] = json.loads(out.read_text(), parse_constant=pytest.fail)["comparisons"]
    assert (found["mean"], found["z"]) == (2.0, None)


def test_a_stray_file_is_no_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_scores(tmp_path / name, benchmark="test", by_seed={1: [1.0, 2.0]})
    (tmp_path / "a" / "generations" / "test" / "seed-1 (copy).jsonl").touch()
    assert compare(tmp_path / "a", tmp_path / "b") == 0


def test_a_mistake_on_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--a", "x"]) == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --b; see --help\n"
