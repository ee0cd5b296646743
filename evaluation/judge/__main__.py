"""Feedback of a language model on the responses of evaluate.py, relative to the references (Table 6 of the paper).

export OPENAI_API_KEY=…
python -m evaluation.judge --judge gpt-4 --evaluation promptkd=runs/a/evaluation --benchmark dolly --out runs/judge \\
    --price-input 30 --price-output 60 --dry-run

Any server with OpenAI's chat completions interface will do (--base-url). Every reply is kept in a file as soon as it is
here: the same command goes on after an interruption, and pays nothing for what was answered. Writes
verdicts/MODEL/BENCHMARK.jsonl, a line for each comparison, and judge.json, `"version": 1`, with

    judge       base_url, model, temperature, max_reply_tokens, attempts
    orders      who was Assistant 1: model_first (the paper's), reference_first
    sources     {BENCHMARK: file of rows}
    scores      {MODEL: {BENCHMARK: …}}: score (Σ model scores / Σ reference scores × 100, mean over the seeds),
                standard_error (over seeds), pooled (value, low, high over rows), per_seed, by_order,
                mean_model_score, mean_reference_score, num_judged, num_rejected, num_unanswered
    usage       num_replies, input_tokens and output_tokens of all replies counted here, cost (null without prices),
                and num_asked, those that this call paid for

A reply counts if its first line is two numbers from 1 to 10. Others are asked for again, and counted as rejected after
--attempts; a comparison is unanswered if the server failed or refused it, such as a prompt that is too long for the
judge. Neither is in any score. The exit code is 1 if some are unanswered.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_options import (
    CommandParser,
    amount,
    at_least,
    check_different,
    named,
    positive,
    run_command,
    seed_list,
)
from evaluation.judge.comparisons import Evaluation, Order
from evaluation.judge.endpoint import Manners, check_base_url, check_openai
from evaluation.judge.estimate import Prices
from evaluation.judge.judgement import Options, judge
from evaluation.judge.report import RESULTS
from evaluation.judge.session import Judge
from kd.errors import UserError

INTERRUPTED = 130
_ORDERS: dict[str, tuple[Order, ...]] = {
    "model-first": ("model_first",),
    "reference-first": ("reference_first",),
    "both": ("model_first", "reference_first"),
}


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line (`sys.argv` if None).

    Raises:
        UserError: an option that is unknown, missing, out of range, or makes no sense without another.
    """
    values = _parser().parse_args(argv)
    check_base_url(values.base_url)
    if (values.price_input is None) != (values.price_output is None):
        raise UserError("--price-input and --price-output belong together; give both or none")
    if values.max_cost is not None and values.price_input is None:
        raise UserError("--max-cost needs --price-input and --price-output")
    check_different("--evaluation", [evaluation.name for evaluation in values.evaluation])
    check_different("--data", [rows.name for rows in values.data])
    prices = None if values.price_input is None else Prices(input=values.price_input, output=values.price_output)
    return Options(
        judge=Judge(
            base_url=values.base_url.rstrip("/"),
            model=values.judge,
            temperature=values.temperature,
            max_reply_tokens=values.max_reply_tokens,
            attempts=values.attempts,
        ),
        manners=Manners(
            requests_per_minute=values.requests_per_minute,
            retries=values.retries,
            timeout_seconds=values.timeout_seconds,
        ),
        concurrency=values.concurrency,
        key_variable=values.key_variable,
        evaluations=tuple(Evaluation(name=one.name, directory=Path(one.path)) for one in values.evaluation),
        benchmarks=tuple(dict.fromkeys(values.benchmark)),
        sources={one.name: one.path for one in values.data},
        seeds=values.seeds,
        rows=values.rows,
        orders=_ORDERS[values.order],
        prices=prices,
        expected_reply_tokens=min(values.expected_reply_tokens, values.max_reply_tokens or sys.maxsize),
        max_cost=values.max_cost,
        dry_run=values.dry_run,
        cache=values.cache or values.out / "cache",
        out=values.out,
    )


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m evaluation.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--judge", required=True, metavar="MODEL", help="name of the judging model, as the server knows it")
    add("--base-url", default="https://api.openai.com/v1", metavar="URL", help="[%(default)s]")
    add(
        "--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable of the key [%(default)s]"
    )
    add("--evaluation", action="append", required=True, type=named, metavar="NAME=DIR", help="--out of evaluate.py")
    add("--benchmark", action="append", default=[], metavar="NAME", help="repeat it for more [all of the first one]")
    add("--data", action="append", default=[], type=named, metavar="BENCHMARK=FILE", help="its rows, if they moved")
    add("--seeds", type=seed_list, metavar="A,B,…", help="generations to judge [all]")
    add("--rows", type=at_least(1), metavar="N", help="only the first N rows [all]")
    add("--order", choices=list(_ORDERS), default="model-first", help="who is Assistant 1 [%(default)s, the paper's]")
    add("--temperature", type=amount, default=0.7, metavar="X", help="of the judge [%(default)s, the paper's]")
    add("--max-reply-tokens", type=at_least(8), metavar="N", help="cut replies, which begin with the scores [never]")
    add("--attempts", type=at_least(1), default=3, metavar="N", help="replies until one has scores [%(default)s]")
    add("--retries", type=at_least(0), default=6, metavar="N", help="of a request that fails [%(default)s]")
    add("--timeout-seconds", type=positive, default=120.0, metavar="X", help="of a silent server [%(default)s]")
    add("--requests-per-minute", type=positive, default=60.0, metavar="X", help="at most [%(default)s]")
    add("--concurrency", type=at_least(1), default=4, metavar="N", help="requests at a time [%(default)s]")
    add("--price-input", type=amount, metavar="X", help="US dollars for a million input tokens")
    add("--price-output", type=amount, metavar="X", help="US dollars for a million output tokens")
    add("--expected-reply-tokens", type=at_least(1), default=200, metavar="N", help="for the estimate [%(default)s]")
    add("--max-cost", type=amount, metavar="X", help="do not begin if the estimate is above so many US dollars")
    add("--dry-run", action="store_true", help="only say what would be asked, and what it would cost")
    add("--cache", type=Path, metavar="DIR", help="where replies are kept [OUT/cache]")
    add("--out", type=Path, required=True, metavar="DIR", help=f"gets {RESULTS} and verdicts/")
    return parser


def _run(argv: Sequence[str] | None) -> int:
    options = parse_options(argv)
    check_openai()
    return 1 if judge(options) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    try:
        return run_command(lambda: _run(argv))
    except KeyboardInterrupt:
        print("interrupted; replies so far are kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
