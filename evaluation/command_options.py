"""What the command lines share: types of values, options about models and rows, one line for a user's mistake."""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, NoReturn

from kd.errors import EXIT_CODE, UserError

DtypeName = Literal["auto", "fp32", "bf16", "fp16"]

# A name becomes a key of the results, a label of a picture, or a directory.
NAME = r"\w[\w.+-]*"
_NAMED = re.compile(rf"({NAME})=(.+)")


@dataclass(frozen=True, kw_only=True)
class Named:
    """A name for the results, and the directory or file that it stands for."""

    name: str
    path: str


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """How rows become prompts and models run; each field is an option of the same name."""

    rows: int
    template: str
    max_prompt_tokens: int
    max_new_tokens: int
    seeds: tuple[int, ...]
    resamples: int
    max_batch_tokens: int
    micro_batch: int
    dtype: DtypeName
    trust_remote_code: bool


class CommandParser(argparse.ArgumentParser):
    """Refuses a command line with one line, which every rank can raise."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def add_analysis_options(parser: argparse.ArgumentParser, *, max_new_tokens: int, seeds: str) -> None:
    """Add the options of `AnalysisOptions`, and those of `add_model_options`."""
    add = parser.add_argument
    add("--rows", type=at_least(2), default=1000, metavar="N", help="the first N rows of a file [%(default)s]")
    add("--template", default="alpaca", help="alpaca, chat, or a Jinja file [%(default)s]")
    add("--max-prompt-tokens", type=at_least(1), default=256, metavar="N", help="rows with more are left out")
    add("--max-new-tokens", type=at_least(1), default=max_new_tokens, metavar="N", help="longest sample [%(default)s]")
    add("--seeds", type=seed_list, default=seeds, metavar="A,B,…", help="one sample of each row a seed [%(default)s]")
    add("--resamples", type=at_least(10), default=1000, metavar="N", help="of the rows, for intervals [%(default)s]")
    add("--micro-batch", type=at_least(1), default=8, metavar="N", help="sequences in one scoring pass [%(default)s]")
    add_model_options(parser)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add how models are loaded and run, and what launchers pass."""
    add = parser.add_argument
    add(
        "--max-batch-tokens",
        type=at_least(1),
        default=16384,
        metavar="N",
        help="samples × (prompt + new tokens) decoded together; batches are dealt to the ranks [%(default)s]",
    )
    add("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="auto is the checkpoint's own")
    add("--trust-remote-code", action="store_true", help="allow model code that comes with a checkpoint to run")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    add("--local_rank", type=int, help=argparse.SUPPRESS)


def analysis_options(arguments: argparse.Namespace) -> AnalysisOptions:
    """The part of a command line that `add_analysis_options` added."""
    return AnalysisOptions(**{entry.name: getattr(arguments, entry.name) for entry in fields(AnalysisOptions)})


def run_command(work: Callable[[], int | None]) -> int:
    """Do `work` in this process, and return its exit code, or 2 after one line about a user's mistake."""
    try:
        return work() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE


def make_directory(path: Path) -> None:
    """Make a directory for results before hours of work need it.

    Raises:
        UserError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be made ({error.strerror}); choose a writable directory") from None


def named(text: str) -> Named:
    """Read NAME=PATH."""
    match = _NAMED.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH with a NAME of letters, digits, dots, +, - and _")
    return Named(name=match[1], path=match[2])


def file_path(text: str) -> Path:
    """Read the path of a file to write."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a directory; give the path of a file")
    return path


def check_different(option: str, names: Sequence[str]) -> None:
    """Check that an option that may be repeated has a name of its own each time.

    Raises:
        UserError: a name comes again.
    """
    for place, name in enumerate(names):
        if name in names[:place]:
            raise UserError(f"{option}: the name {name} is given twice; give each its own")


def at_least(smallest: int) -> Callable[[str], int]:
    """Reader of whole numbers from `smallest` on."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {smallest}")
        return int(text)

    return convert


def amount(text: str) -> float:
    """Read a finite number of at least 0."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def positive(text: str) -> float:
    """Read a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def probability(text: str) -> float:
    """Read a number above 0 and at most 1."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return value


def share(text: str) -> float:
    """Read a number from 0 to below 1."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to below 1")
    return value


def seed_list(text: str) -> tuple[int, ...]:
    """Read different whole numbers with commas between them."""
    seeds = tuple(at_least(0)(seed) for seed in text.split(","))
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds


def _number(text: str) -> float:
    """NaN, which is in no range, where `text` is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
