"""Aggregation, and the files of an evaluation."""

import dataclasses
from pathlib import Path

import pytest

from evaluation.results import (
    claim,
    evaluated_seeds,
    generations_file,
    read_generations,
    summarise,
    write_atomically,
    write_generations,
)
from kd.errors import UserError
from tests.unit.evaluation.generations import generation


def test_mean_and_standard_errors_over_seeds_and_rows() -> None:
    by_seed = {
        10: [generation(0, rouge_l=10.0), generation(1, rouge_l=30.0)],
        20: [generation(0, rouge_l=20.0, response="yes"), generation(1, rouge_l=32.0)],
    }
    summary = summarise(by_seed)
    assert summary.rougeL.per_seed == {10: 20.0, 20: 26.0}
    assert summary.rougeL.mean == pytest.approx(23.0)
    # Standard deviation of 20 and 26 is sqrt(18); divided by sqrt(2) it is 3.
    assert summary.rougeL.standard_error == pytest.approx(3.0)
    # Rows' means over the seeds: 15 and 31. Standard deviation sqrt(128), divided by sqrt(2): 8.
    assert summary.rougeL.standard_error_over_rows == pytest.approx(8.0)
    assert summary.exact_match.per_seed == {10: 0.0, 20: 50.0}
    assert summary.num_samples == 2


def test_one_seed_and_one_row_have_no_standard_error() -> None:
    score = summarise({10: [generation(0)]}).rougeL
    assert score.standard_error is None
    assert score.standard_error_over_rows is None


def test_shares_of_truncated_and_empty_responses() -> None:
    rows = [
        dataclasses.replace(generation(0, response=" \n"), response_tokens=1),
        dataclasses.replace(generation(1), ended=False, response_tokens=8),
        generation(2),
        generation(3),
    ]
    summary = summarise({10: rows})
    assert (summary.truncated_share, summary.empty_share) == (0.25, 0.25)


def test_lengths_of_responses_over_all_seeds() -> None:
    counts = {10: [1, 2, 4], 20: [4, 5, 8]}
    by_seed = {
        seed: [dataclasses.replace(generation(row), response_tokens=count) for row, count in enumerate(row_counts)]
        for seed, row_counts in counts.items()
    }
    lengths = summarise(by_seed).response_tokens
    assert (lengths.shortest, lengths.median, lengths.mean, lengths.longest) == (1, 4.0, 4.0, 8)
    # Squared distances from 4: 9 + 4 + 0 + 0 + 1 + 16 = 30, of six responses.
    assert lengths.standard_deviation == pytest.approx(5**0.5)
    # Nine tenths of the way from the first to the last of six: half-way between the fifth and the sixth.
    assert lengths.percentile_90 == pytest.approx(6.5)


def test_generations_come_back_as_they_were(tmp_path: Path) -> None:
    path = generations_file(tmp_path / "new", 10)
    rows = [generation(0, response="one\u2028two\nthree"), generation(1, response="")]
    write_generations(path, rows)
    assert read_generations(path) == rows
    assert [file.name for file in path.parent.iterdir()] == ["seed-10.jsonl"]


def test_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "seed-10.jsonl"
    write_generations(path, [generation(0)])
    path.write_text(path.read_text() + '{"row": 1}\n')
    with pytest.raises(UserError, match=r"seed-10.jsonl:2: "):
        read_generations(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\n", "is no UTF-8 text"), (b"", "seed-10.jsonl:1: "), (b'{"row"', "seed-10.jsonl:1: ")],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "seed-10.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_generations(path)


def test_the_last_line_counts_without_a_line_break_too(tmp_path: Path) -> None:
    path = tmp_path / "seed-10.jsonl"
    rows = [generation(0), generation(1)]
    write_generations(path, rows)
    path.write_text(path.read_text().removesuffix("\n"))
    assert read_generations(path) == rows


def test_only_files_of_seeds_are_seeds(tmp_path: Path) -> None:
    for name in ("seed-20.jsonl", "seed-3.jsonl", "seed-3 (copy).jsonl", ".seed-4.jsonl.partial"):
        (tmp_path / name).touch()
    assert evaluated_seeds(tmp_path) == [3, 20]


def test_generations_of_unknown_settings_are_not_claimed(tmp_path: Path) -> None:
    write_generations(generations_file(tmp_path, 10), [generation(0)])
    with pytest.raises(UserError, match="settings.json: cannot be read"):
        claim(tmp_path, settings={"top_k": 0})


def test_claim_refuses_other_settings_only_where_generations_are(tmp_path: Path) -> None:
    claim(tmp_path, settings={"top_k": 0, "greedy": False})
    claim(tmp_path, settings={"top_k": 5, "greedy": False})
    write_generations(generations_file(tmp_path, 10), [generation(0)])
    claim(tmp_path, settings={"top_k": 5, "greedy": False})
    with pytest.raises(UserError, match=r"made with top_k=5, this call has top_k=0; use another --out or delete"):
        claim(tmp_path, settings={"top_k": 0, "greedy": False})


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")
    (tmp_path / ".results.json.partial").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
