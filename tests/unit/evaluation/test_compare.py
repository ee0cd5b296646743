"""Paired comparison of two evaluations, against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.compare import main, paired_difference
from evaluation.generations import generations_file, write_generations
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


def test_interval_and_p_of_many_rows_are_those_of_a_normal_distribution() -> None:
    # Mean 0.1 and standard deviation 1 over 400 rows: a standard error of 0.05, two of them.
    noise = np.random.default_rng(0).normal(size=400)
    differences = 0.1 + (noise - noise.mean()) / noise.std(ddof=1)
    found = paired_difference(differences[None], np.zeros((1, 400)))
    assert found.z == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05), abs=0.004)
    assert found.p_value == pytest.approx(0.0455, abs=0.01)


def test_p_of_equal_scores_is_one() -> None:
    same = np.array([[1.0, 2.0, 3.0]])
    assert paired_difference(same, same).p_value == 1.0


def test_p_is_never_zero() -> None:
    b = np.array([[1.0, 2.0, 3.0]])
    assert paired_difference(b + 5, b).p_value == pytest.approx(2 / 10_001)


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
        write_generations(generations_file(tmp_path / name, benchmark="test", seed=1), rows)
    assert main(["--a", str(tmp_path / "a"), "--b", str(tmp_path / "b"), "--metric", "exact_match"]) == 0
    # Two of four rows: 50 points, standard deviation 57.7, error 28.9.
    assert "+50.00 ± 28.87 exact match" in capsys.readouterr().out


def test_what_does_not_pair_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, none, seeds, rows, single = (tmp_path / name for name in ("a", "none", "seeds", "rows", "single"))
    write_scores(a, benchmark="test", by_seed={1: [1.0, 2.0]})
    write_scores(seeds, benchmark="test", by_seed={2: [1.0, 2.0]})
    write_scores(rows, benchmark="test", by_seed={1: [1.0, 2.0, 3.0]})
    write_scores(single, benchmark="test", by_seed={1: [1.0]})
    write_scores(tmp_path / "other", benchmark="other", by_seed={1: [1.0, 2.0]})
    references = [generation(row, reference="maybe") for row in range(2)]
    write_generations(generations_file(tmp_path / "references", benchmark="test", seed=1), references)
    named = ["--benchmark", "test"]
    cases: list[tuple[Path, Path, list[str], str]] = [
        (a, none, named, "has no seed-<s>.jsonl"),
        (a, seeds, named, "has the seeds 1,"),
        (a, rows, named, "have different rows"),
        (a, tmp_path / "references", named, "have different rows"),
        (single, single, named, "has one row"),
        (a, tmp_path / "other", [], "no benchmark in common"),
        (a, a, ["--metric", "accuracy"], "has no scores accuracy, it has exact_match, rougeL; evaluate again with"),
        (a, a, ["--out", str(tmp_path)], "is a directory; give the path of a file"),
    ]
    for first, second, extra, expected in cases:
        assert main(["--a", str(first), "--b", str(second), *extra]) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert message.count("\n") == 1


def test_an_infinite_z_is_null_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, scores in (("A", [3.0, 4.0]), ("B", [1.0, 2.0])):
        write_scores(tmp_path / name / "evaluation", benchmark="test", by_seed={1: scores})
    (tmp_path / "A" / "evaluation" / "generations" / "test" / "seed-1 (copy).jsonl").touch()
    out = tmp_path / "comparisons.json"
    a, b = (str(tmp_path / name / "evaluation") for name in ("A", "B"))
    assert main(["--a", a, "--b", b, "--out", str(out)]) == 0
    [found] = json.loads(out.read_text(), parse_constant=pytest.fail)["comparisons"]
    assert (found["mean"], found["z"]) == (2.0, None)
    assert capsys.readouterr().out.startswith("A/evaluation - B/evaluation on test: ")
