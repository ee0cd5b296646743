"""Aggregation, and the files of an evaluation."""

import dataclasses
import json
from pathlib import Path

import pytest

from evaluation.generations import generations_file, write_generations
from evaluation.results import claim, read_json, summarise, write_json
from kd.errors import UserError
from tests.unit.evaluation.generations import generation

METRICS = ("rougeL", "exact_match")


def test_mean_and_standard_errors_over_seeds_and_rows() -> None:
    by_seed = {
        10: [generation(0, rouge_l=10.0), generation(1, rouge_l=30.0)],
        20: [generation(0, rouge_l=20.0, response="yes"), generation(1, rouge_l=32.0)],
    }
    summary = summarise(by_seed, metrics=METRICS)
    assert summary.scores["rougeL"].per_seed == {10: 20.0, 20: 26.0}
    assert summary.scores["rougeL"].mean == pytest.approx(23.0)
    # Standard deviation of 20 and 26 is sqrt(18); divided by sqrt(2) it is 3.
    assert summary.scores["rougeL"].standard_error == pytest.approx(3.0)
    # Rows' means over the seeds: 15 and 31. Standard deviation sqrt(128), divided by sqrt(2): 8.
    assert summary.scores["rougeL"].standard_error_over_rows == pytest.approx(8.0)
    assert summary.scores["exact_match"].per_seed == {10: 0.0, 20: 50.0}
    assert summary.num_samples == 2
    assert list(summary.to_json())[:3] == ["rougeL", "exact_match", "num_samples"]


def test_one_seed_and_one_row_have_no_standard_error() -> None:
    score = summarise({10: [generation(0)]}, metrics=METRICS).scores["rougeL"]
    assert score.standard_error is None
    assert score.standard_error_over_rows is None


def test_shares_of_truncated_and_empty_responses() -> None:
    rows = [
        dataclasses.replace(generation(0, response=" \n"), response_tokens=1),
        dataclasses.replace(generation(1), ended=False, response_tokens=8),
        generation(2),
        generation(3),
    ]
    summary = summarise({10: rows}, metrics=METRICS)
    assert (summary.truncated_share, summary.empty_share) == (0.25, 0.25)


def test_lengths_of_responses_over_all_seeds() -> None:
    counts = {10: [1, 2, 4], 20: [4, 5, 8]}
    by_seed = {
        seed: [dataclasses.replace(generation(row), response_tokens=count) for row, count in enumerate(row_counts)]
        for seed, row_counts in counts.items()
    }
    lengths = summarise(by_seed, metrics=METRICS).response_tokens
    assert (lengths["shortest"], lengths["median"], lengths["mean"], lengths["longest"]) == (1, 4.0, 4.0, 8)
    # Squared distances from 4: 9 + 4 + 0 + 0 + 1 + 16 = 30, of six responses.
    assert lengths["standard_deviation"] == pytest.approx(5**0.5)
    # Nine tenths of the way from the first to the last of six: half-way between the fifth and the sixth.
    assert lengths["percentile_90"] == pytest.approx(6.5)


def test_responses_of_unknown_settings_are_refused(tmp_path: Path) -> None:
    write_generations(generations_file(tmp_path, benchmark="test", seed=10), [generation(0)])
    with pytest.raises(UserError, match=r"settings.json: cannot be read .*; the responses beside it may be"):
        claim(tmp_path, benchmark="test", settings={"top_k": 0})


def test_other_settings_are_refused_only_where_responses_are(tmp_path: Path) -> None:
    for top_k in (0, 5):
        claim(tmp_path, benchmark="test", settings={"top_k": top_k, "greedy": False})
    write_generations(generations_file(tmp_path, benchmark="test", seed=10), [generation(0)])
    claim(tmp_path, benchmark="test", settings={"top_k": 5, "greedy": False})
    with pytest.raises(UserError, match=r"made with top_k=5, this call has top_k=0; use another --out or delete"):
        claim(tmp_path, benchmark="test", settings={"top_k": 0, "greedy": False})


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_broken_file_is_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match="results.json: .*; evaluate again"):
        read_json(path, advice="evaluate again")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match=r"results.json: cannot be written \(No space left on device\)"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
