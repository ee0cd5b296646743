"""The command line: defaults, and one line for each mistake."""

from pathlib import Path

import pytest

from evaluation.options import parse_options
from kd.errors import UserError

GOOD = ["--model", "m", "--benchmark", "a=x.jsonl", "--out", "o"]


def test_defaults_are_the_papers() -> None:
    options = parse_options(GOOD)
    assert options.seeds == (10, 20, 30, 40, 50)
    assert (options.max_new_tokens, options.max_prompt_tokens) == (256, 256)
    assert (options.temperature, options.top_p, options.top_k, options.greedy) == (1.0, 1.0, 0, False)
    assert (options.min_p, options.repetition_penalty, options.no_repeat_ngram_size) == (0.0, 1.0, 0)
    assert (options.template, options.overlong, options.soft_prompt, options.rows) == ("alpaca", "drop", None, None)


def test_benchmarks_keep_their_order_and_a_file_may_hold_an_equals_sign() -> None:
    options = parse_options([*GOOD, "--benchmark", "b=data/n=5.jsonl", "--local_rank=1"])
    assert [(benchmark.name, benchmark.path) for benchmark in options.benchmarks] == [
        ("a", "x.jsonl"),
        ("b", "data/n=5.jsonl"),
    ]
    assert options.out == Path("o")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--benchmark", "self_inst"], "'self_inst' is not NAME=PATH"),
        (["--benchmark", "=x.jsonl"], "is not NAME=PATH"),
        (["--benchmark", "b="], "is not NAME=PATH"),
        (["--benchmark", "../b=x.jsonl"], "is not NAME=PATH"),
        (["--benchmark", "a=y.jsonl"], "--benchmark: the name a is given twice"),
        (["--seeds", "10,10"], "names a seed twice"),
        (["--seeds", "10,-1"], "'-1' is not a whole number of at least 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens: '0' is not a whole number of at least 1"),
        (["--temperature", "0"], "--temperature: '0' is not a number above 0"),
        (["--temperature", "nan"], "--temperature: 'nan' is not a number above 0"),
        (["--top-p", "1.5"], "--top-p: '1.5' is not above 0 and at most 1"),
        (["--min-p", "1"], "--min-p: '1' is not from 0 to below 1"),
        (["--top-k", "x"], "--top-k: 'x' is not a whole number"),
        (["--overlong", "keep"], "--overlong: invalid choice"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_mistake_is_named_in_one_line(extra: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options([*GOOD, *extra])
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_option_is_named() -> None:
    with pytest.raises(UserError, match="required: --model, --benchmark, --out"):
        parse_options([])
