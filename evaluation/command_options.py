"""What the command lines of the analyses share: types of values, options about models and rows, exit codes."""

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn

from evaluation.options import DtypeName
from kd.distributed import World, end_world, exit_with_user_error, start_world
from kd.errors import UserError

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
    """Add the options of `AnalysisOptions`, and what launchers pass."""
    add = parser.add_argument
    add("--rows", type=at_least(2), default=1000, metavar="N", help="the first N rows of a file [%(default)s]")
    add("--template", default="alpaca", help="alpaca, chat, or a Jinja file [%(default)s]")
    add("--max-prompt-tokens", type=at_least(1), default=256, metavar="N", help="rows with more are left out")
    add("--max-new-tokens", type=at_least(1), default=max_new_tokens, metavar="N", help="longest sample [%(default)s]")
    add("--seeds", type=seed_list, default=seeds, metavar="A,B,…", help="one sample of each row a seed [%(default)s]")
    add("--resamples", type=at_least(10), default=1000, metavar="N", help="of the rows, for intervals [%(default)s]")
    add(
        "--max-batch-tokens",
        type=at_least(1),
        default=16384,
        metavar="N",
        help="samples × (prompt + new tokens) decoded together; batches are dealt to the ranks [%(default)s]",
    )
    add("--micro-batch", type=at_least(1), default=8, metavar="N", help="sequences in one scoring pass [%(default)s]")
    add("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help="auto is the checkpoint's own")
    add("--trust-remote-code", action="store_true", help="allow model code that comes with a checkpoint to run")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    add("--local_rank", type=int, help=argparse.SUPPRESS)


def analysis_options(arguments: argparse.Namespace) -> AnalysisOptions:
    """The part of a command line that `add_analysis_options` added."""
    return AnalysisOptions(**{entry.name: getattr(arguments, entry.name) for entry in fields(AnalysisOptions)})


def run_on_ranks(work: Callable[[World], None]) -> int:
    """Do `work` on all ranks of the launcher together, and return the exit code."""
    try:
        work(start_world())
    except UserError as error:
        return exit_with_user_error(error)
    finally:
        end_world()
    return 0


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


def at_least(smallest: int) -> Callable[[str], int]:
    """Reader of whole numbers from `smallest` on."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {smallest}")
        return int(text)

    return convert


def amount(text: str) -> float:
    """Read a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def positive(text: str) -> float:
    """Read a finite number above 0."""
    value = amount(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def seed_list(text: str) -> tuple[int, ...]:
    """Read different whole numbers with commas between them."""
    seeds = tuple(at_least(0)(seed) for seed in text.split(","))
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return seeds
