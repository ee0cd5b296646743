"""The command line of `evaluation/evaluate.py`."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, TypeVar

from evaluation.benchmark_rows import Benchmark, parse_benchmark
from kd.errors import UserError

DtypeName = Literal["auto", "fp32", "bf16", "fp16"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to evaluate, how to decode, and where to write; each field is an option of the same name."""

    model: str
    soft_prompt: Path | None
    benchmarks: tuple[Benchmark, ...]
    seeds: tuple[int, ...]
    max_new_tokens: int
    max_prompt_tokens: int
    template: str
    overlong: Literal["drop", "truncate"]
    greedy: bool
    temperature: float
    top_p: float
    top_k: int
    max_batch_tokens: int
    dtype: DtypeName
    trust_remote_code: bool
    rows: int | None
    out: Path


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line (`sys.argv` if None).

    Raises:
        UserError: an option that is unknown, missing or out of range, or a benchmark named twice.
    """
    values = vars(_parser().parse_args(argv))
    del values["local_rank"]
    options = Options(**values | {"benchmarks": tuple(values["benchmarks"])})
    names = [benchmark.name for benchmark in options.benchmarks]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--benchmark {name}=…: the name is given twice; give each benchmark its own")
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The usage would bury the one line that matters, and every rank would print it.
        raise UserError(f"{message}; see --help")


def _parser() -> _Parser:
    parser = _Parser(prog="evaluate.py", description="Sample a model's responses to benchmarks and score them.")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="from_pretrained directory or hub name")
    add(
        "--soft-prompt", type=Path, metavar="FILE", help="soft_prompt.safetensors of a run; --model is then its teacher"
    )
    add(
        "--benchmark",
        dest="benchmarks",
        action="append",
        required=True,
        type=_user_errors(parse_benchmark),
        metavar="NAME=FILE",
        help="rows instruction, input, output (.jsonl, .json, .parquet, or a hub name); repeat it for more",
    )
    add(
        "--out", type=Path, required=True, metavar="DIR", help="gets generations/<name>/seed-<s>.jsonl and results.json"
    )
    add("--seeds", type=_seeds, default="10,20,30,40,50", metavar="A,B,…", help="seeds of the samples [%(default)s]")
    add("--rows", type=at_least(1), metavar="N", help="only the first N rows of each benchmark [all]")
    add("--max-new-tokens", type=at_least(1), default=256, metavar="N", help="longest response [%(default)s]")
    add("--max-prompt-tokens", type=at_least(1), default=256, metavar="N", help="longest prompt [%(default)s]")
    add("--overlong", choices=["drop", "truncate"], default="drop", help="rows with longer prompts [%(default)s]")
    add("--template", default="alpaca", help="alpaca, chat, or a Jinja file [%(default)s]")
    add("--greedy", action="store_true", help="take the most likely token; all seeds then agree")
    add("--temperature", type=_positive, default=1.0, metavar="X", help="divides the logits [%(default)s]")
    add("--top-p", type=_probability, default=1.0, metavar="X", help="smallest set with this probability; 1 is off")
    add("--top-k", type=at_least(0), default=0, metavar="N", help="the N most likely tokens; 0 is off")
    add(
        "--max-batch-tokens",
        type=at_least(1),
        default=16384,
        metavar="N",
        help="rows × (prompt + new tokens) decoded together; batches are dealt to the ranks [%(default)s]",
    )
    add(
        "--dtype",
        choices=["auto", "fp32", "bf16", "fp16"],
        default="auto",
        help="auto is the checkpoint's [%(default)s]",
    )
    add("--trust-remote-code", action="store_true", help="allow model code that comes with a checkpoint to run")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def _user_errors(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse`, whose UserError argparse reports under the option's name."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def at_least(smallest: int) -> Callable[[str], int]:
    """An argparse type: whole numbers from `smallest` on."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {smallest}")
        return int(text)

    return convert


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(at_least(0)(seed) for seed in text.split(","))
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds


def _positive(text: str) -> float:
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _probability(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
