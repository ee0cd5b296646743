"""Command lines of the bench: the step, which needs no command's name, decoding and loss."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

from evaluation.bench.presets import PRESETS
from evaluation.command_options import CommandParser, at_least
from kd.config.fields import GatherName

_DESCRIPTION = """\
Cost of a training step by phase, with random models, for chosen methods and ZeRO stages:

  deepspeed --num_gpus 2 --module evaluation.bench --methods gkd,promptkd --zero 0,3 --peer trl

Each method trains through the same code as a real run, after three steps that warm up. Absolute times belong to one
machine: compare ratios of one call, on a machine that does nothing else. Two commands beside it, with their own --help:

  python -m evaluation.bench decoding    tokens per second of the decoder and of transformers' generate
  python -m evaluation.bench loss        time and memory of the fused loss and of a plain one
"""


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What to measure of training steps."""

    out: Path
    preset: str
    methods: tuple[str, ...]
    zero: tuple[int, ...]
    gather: tuple[str, ...]
    steps: int
    peer: str | None
    overrides: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """What to decode."""

    out: Path
    preset: str
    prompts: int
    repeats: int


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Sizes of the loss."""

    out: Path
    positions: int
    vocabulary: int
    student_width: int
    teacher_width: int
    repeats: int


def parse_options(argv: Sequence[str]) -> StepOptions | DecodingOptions | LossOptions:
    """Read the command line.

    Raises:
        UserError: an option that is unknown or out of range.
    """
    match argv:
        case ["decoding", *rest]:
            return DecodingOptions(**vars(_decoding_parser().parse_args(rest)))
        case ["loss", *rest]:
            return LossOptions(**vars(_loss_parser().parse_args(rest)))
    values = vars(_step_parser().parse_intermixed_args(argv))
    del values["local_rank"]
    return StepOptions(**values | {"overrides": tuple(values["overrides"])})


def _new_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"python -m evaluation.bench {command}".strip(),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path("runs") / f"bench-{command or 'step'}-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help="new directory for the results")
    return parser


def _step_parser() -> argparse.ArgumentParser:
    parser = _new_parser("", _DESCRIPTION)
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="cpu-small", help="models, batch and lengths [%(default)s]")
    add("--methods", type=_words, default="sft,gkd,promptkd", metavar="A,B,…", help="as `method` [%(default)s]")
    add(
        "--zero",
        type=_numbers,
        default="3",
        metavar="N,…",
        help="ZeRO stages; 3 partitions both models, 1 and 2 leave the teacher resident [%(default)s]",
    )
    add("--gather", type=_choices, default="auto", metavar="A,…", help="`engine.gather` under ZeRO-3 [%(default)s]")
    add("--steps", type=at_least(1), default=3, metavar="N", help="measured steps of each method [%(default)s]")
    add("--peer", choices=["trl"], help="also time TRL's DistillationTrainer with the same shapes (extra bench)")
    add("overrides", nargs="*", metavar="section.field=value", help="fields of the configuration of all runs")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def _decoding_parser() -> argparse.ArgumentParser:
    parser = _new_parser("decoding", "Tokens per second of kd.rollout.decode and of transformers.generate.")
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="cpu-small", help="whose student decodes [%(default)s]")
    add("--prompts", type=at_least(1), default=64, metavar="N", help="[%(default)s]")
    add("--repeats", type=at_least(1), default=3, metavar="N", help="measured runs; the median counts [%(default)s]")
    return parser


def _loss_parser() -> argparse.ArgumentParser:
    parser = _new_parser("loss", "Time and peak memory of reverse KL with its gradients: fused, and plain autograd.")
    add = parser.add_argument
    add("--positions", type=at_least(1), default=4096, metavar="N", help="response positions [%(default)s]")
    add("--vocabulary", type=at_least(2), default=151936, metavar="N", help="[%(default)s]")
    add("--student-width", type=at_least(1), default=512, metavar="N", help="[%(default)s]")
    add("--teacher-width", type=at_least(1), default=1024, metavar="N", help="[%(default)s]")
    add("--repeats", type=at_least(1), default=3, metavar="N", help="processes of each kind [%(default)s]")
    return parser


def _words(text: str) -> tuple[str, ...]:
    """Different words with commas between them."""
    return tuple(dict.fromkeys(text.split(",")))


def _choices_of(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    def convert(text: str) -> tuple[str, ...]:
        for word in _words(text):
            if word not in allowed:
                raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(allowed)}")
        return _words(text)

    return convert


_choices = _choices_of(*get_args(GatherName))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, _choices_of("0", "1", "2", "3")(text)))
