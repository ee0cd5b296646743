"""Parts of the judge that need no server: its prompt, what counts as scores, their sums, and the estimate."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.generations import generations_file, write_generations
from evaluation.judge.__main__ import COMMAND, estimate_usage
from evaluation.judge.comparisons import Comparison, read_comparisons, render
from evaluation.judge.config import JudgeSection, Order
from evaluation.judge.responses import JudgeResponse, ResponseCache, Scores, parse_scores
from evaluation.judge.scores import feedback_score
from evaluation.judge.session import Judgement
from kd.data.conversations import Turn
from kd.data.instructions import Instruction
from kd.errors import UserError
from tests.unit.evaluation.generations import generation


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 7", (8, 7)),
        ("8 7\nAssistant 1 was better: 3 4", (8, 7)),
        ("\n  8.5   10 \n", (8.5, 10)),
        ("8, 7", (8, 7)),
        ("8,7", (8, 7)),
        ("1\t10", (1, 10)),
    ],
)
def test_two_numbers_on_the_first_line_are_scores(text: str, scores: tuple[float, float]) -> None:
    assert parse_scores(text) == Scores(first=scores[0], second=scores[1])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "8",
        "8\n7",
        "8/7",
        "8/10 7/10",
        "8 / 7",
        "8-7",
        "87",
        "8 7 6",
        "8 7.",
        "8 7 because",
        "**8 7**",
        "Assistant 1: 8",
        "Assistant 1: 8 Assistant 2: 7",
        "Scores: 8 7",
        "0 5",
        "11 5",
        "5 10.5",
        "-8 7",
        "8 \uff17",
        "nan 7",
        "1e1 7",
        "8 seven",
    ],
)
def test_anything_else_is_no_score(text: str) -> None:
    assert parse_scores(text) is None


def test_the_prompt_is_the_papers_in_either_order() -> None:
    row = Instruction(instruction="Say {x}.", input="", references=("truth", "other"), source="f:1")
    text = render(row, response="mine {y}", order="model_first")
    beginning = (
        "### Instruction:\nSay {x}.\n### Input:\n\n### Assistant 1:\nmine {y}\n### Assistant 2:\ntruth\n\nWe would"
    )
    assert text.startswith(beginning)
    assert text.endswith("does not affect your judgment.")
    swapped = render(row, response="mine {y}", order="reference_first")
    assert swapped == text.replace("mine {y}", "#").replace("truth", "mine {y}").replace("#\n### A", "truth\n### A")


def test_rows_are_read_with_the_columns_of_the_evaluation(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "Add.", "r": "3", "instruction": "no", "output": "no"}\n')
    write_generations(generations_file(tmp_path, benchmark="b", seed=1), [generation(0, reference="3")])

    def read(given: Any, **entry: Any) -> list[Comparison]:
        (tmp_path / "results.json").write_text(json.dumps({"benchmarks": {"b": {"source": str(rows)} | entry}}))
        every: dict[str, Any] = {"seeds": None, "num_rows": None, "orders": ("model_first",)}
        return list(read_comparisons("m", tmp_path, benchmark="b", source=str(rows), columns=given, **every))

    columns = {"prompt": "q", "response": "r"}
    for given, entry in ((None, {"columns": columns}), (columns, {}), (columns, {"columns": {"prompt": "r"}})):
        (found,) = read(given, **entry)
        assert found.prompt.startswith("### Instruction:\nAdd.\n")
    with pytest.raises(UserError, match="row 0 is not that of"):
        read(None)
    with pytest.raises(UserError, match="results.json: is no results.json of evaluate.py"):
        read(None, columns=3)
    argv = ["--judge", "m", "--evaluation", "a=b", "--out", "o", "--columns", "{prompt: q, response: r}"]
    assert COMMAND.read(argv).columns == columns


def test_a_conversation_is_not_judged_in_part() -> None:
    row = Instruction(instruction="x", input="", references=("y",), source="f:1", earlier=(Turn("system", "z"),))
    with pytest.raises(UserError, match="f:1: a conversation with a system turn or several turns, and the judge's"):
        render(row, response="y", order="model_first")


def judged(
    row: int, *, seed: int = 1, order: Order = "model_first", scores: tuple[float, float] | None = None
) -> tuple[Comparison, Judgement]:
    comparison = Comparison(model="m", benchmark="b", seed=seed, row=row, order=order, prompt="")
    if scores is None:
        return comparison, Judgement(status="rejected", reason="nonsense")
    return comparison, Judgement(status="judged", scores=Scores(first=scores[0], second=scores[1]))


def test_sums_are_divided_and_not_single_scores() -> None:
    # (1 + 9) / (2 + 9) = 90.9 %; the mean of 50 % and 100 % would be 75.
    score = feedback_score([judged(0, scores=(1, 2)), judged(1, scores=(9, 9)), judged(2)])
    assert score.score == pytest.approx(1000 / 11)
    assert (score.num_judged, score.num_rejected, score.num_unanswered) == (2, 1, 0)
    assert (score.mean_model_score, score.mean_reference_score) == (5.0, 5.5)
    assert score.standard_error is None


def test_seeds_have_equal_weight_and_scores_follow_the_order() -> None:
    pairs = [
        judged(0, seed=1, scores=(8, 10)),
        judged(1, seed=1, scores=(8, 10)),
        judged(0, seed=2, order="reference_first", scores=(10, 6)),
    ]
    score = feedback_score(pairs)
    assert score.per_seed == {1: 80.0, 2: 60.0}
    assert score.score == 70.0
    assert score.standard_error == pytest.approx(10.0)
    assert score.pooled.value == pytest.approx(100 * 22 / 30)
    assert score.by_order == {"model_first": 80.0, "reference_first": 60.0}


def test_nothing_judged_has_no_score() -> None:
    score = feedback_score([judged(0), judged(1)])
    assert score.score is score.pooled.value is score.mean_model_score is None
    assert (score.per_seed, score.num_rejected) == ({}, 2)


def test_the_interval_is_over_rows_and_not_over_judgements() -> None:
    """Ten seeds that repeat the same judgements say no more than one."""
    rows = [(row, (5.0 + row % 5, 8.0)) for row in range(20)]
    once = feedback_score([judged(row, scores=scores) for row, scores in rows]).pooled
    often = feedback_score([judged(row, seed=seed, scores=scores) for seed in range(10) for row, scores in rows]).pooled
    assert often == once
    assert once.low is not None and once.value is not None and once.high is not None
    assert once.low < once.value - 4 < once.value + 4 < once.high


def test_the_estimate_counts_bytes_and_expected_tokens() -> None:
    argv = ["--judge", "m", "--evaluation", "a=b", "--out", "o"]
    config = COMMAND.read([*argv, "--price-input", "10", "--price-output", "30"])
    estimate = estimate_usage(["ä" * 50, "b" * 301], config=config)
    # 100 and 301 bytes, 4 to a token, rounded up once; 10 more for each message.
    assert (estimate.num_requests, estimate.input_tokens, estimate.output_tokens) == (2, 121, 400)
    assert estimate.cost == pytest.approx((121 * 10 + 400 * 30) / 1e6)
    assert str(estimate).endswith("about 121 input tokens (4 bytes each) and 400 output tokens: about $0.01")
    clipped = estimate_usage(["a"], config=COMMAND.read([*argv, "--max-response-tokens", "16"]))
    assert (clipped.output_tokens, str(clipped)[-15:]) == (16, "no prices given")


def test_a_response_is_found_again_by_the_complete_request(tmp_path: Path) -> None:
    cache = ResponseCache(tmp_path / "cache")
    request = {"model": "a", "temperature": 0.7, "prompt": "p\n", "attempt": 0}
    response = JudgeResponse(text="8 7 é", input_tokens=3, output_tokens=None)
    assert cache.find(request) is None
    cache.keep(request, response)
    assert cache.find(dict(reversed(request.items()))) == response
    for name, value in (("model", "b"), ("temperature", 0.8), ("prompt", "p"), ("attempt", 1)):
        assert cache.find(request | {name: value}) is None
    assert not list(tmp_path.rglob("*.partial"))


def test_urls_that_may_hold_a_key_are_refused() -> None:
    for url in ("http://127.0.0.1:8000/v1", "https://api.openai.com/v1"):
        JudgeSection(model="m", base_url=url)
    for url in (
        "https://k@host/v1",
        "https://host/v1?key=k",
        "ftp://host",
        "host",
        "https://",
        "http://[",
        "http://host:x",
    ):
        with pytest.raises(UserError, match="judge.base_url"):
            JudgeSection(model="m", base_url=url)
