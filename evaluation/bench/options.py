"""The command lines of `evaluation.bench`: the step itself, and three commands beside it."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

from evaluation.bench.presets import METHODS, PRESETS
from evaluation.command_options import CommandParser, at_least
from kd.config.fields import GatherName, MethodName
from kd.errors import UserError
from kd.losses.products import ProductsName


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What to measure of training steps."""

    out: Path
    preset: str
    methods: tuple[MethodName, ...]
    zero: tuple[int, ...]
    gather: tuple[GatherName, ...]
    steps: int
    products: ProductsName
    peer: str | None


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What to vary, and on how many ranks."""

    out: Path
    memory_ranks: tuple[int, ...]
    ranks: int
    steps: int


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


T = TypeVar("T")
Options = StepOptions | ScalingOptions | DecodingOptions | LossOptions

_PROGRAM = "evaluation.bench"
_DESCRIPTION = """\
What a training step costs here, by its parts, with random models and no need for data:

  deepspeed --num_gpus 2 --module evaluation.bench --peer trl

Each method trains a few steps through the same code as a real run, after three that warm up. Beside its
seconds stands the arithmetic floor: counted operations and bytes over what this machine was measured to do in the
same run. Times of one machine say little: compare ratios, on a machine that does nothing else.
"""
_COMMANDS = """\
three commands beside it, each with its own --help:
  python -m evaluation.bench scaling     teacher bytes by the number of ranks; cost by length, batch, vocabulary, prompt
  python -m evaluation.bench decoding    tokens per second of the decoding loop and of what could take its place
  python -m evaluation.bench loss        memory and time of the chunked loss and of a plain one
"""


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line.

    Raises:
        UserError: an option that is unknown or out of range, or a command that does not exist.
    """
    # DeepSpeed's launcher puts it first; ranks are read from the environment.
    words = [word for word in argv if not word.startswith("--local_rank")]
    parsers: dict[str, Callable[[], argparse.ArgumentParser]] = {
        "scaling": _scaling_parser,
        "decoding": _decoding_parser,
        "loss": _loss_parser,
    }
    if words and not words[0].startswith("-"):
        command, *words = words
        if command not in parsers:
            raise UserError(f"no command {command}; there are {', '.join(parsers)}, and none for the training step")
        values = vars(parsers[command]().parse_args(words))
        kind: Any = {"scaling": ScalingOptions, "decoding": DecodingOptions, "loss": LossOptions}[command]
    else:
        values, kind, command = vars(_step_parser().parse_args(words)), StepOptions, "step"
    if values["out"] is None:
        values["out"] = Path("runs") / f"cost-{command}-{datetime.now():%Y%m%d-%H%M%S}"
    options: Options = kind(**values)
    return options


def _new_parser(command: str, description: str, *, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"python -m {_PROGRAM} {command}".strip(),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="new directory for all results [runs/cost-<command>-<time>]"
    )
    return parser


def _step_parser() -> argparse.ArgumentParser:
    parser = _new_parser("", _DESCRIPTION, epilog=_COMMANDS)
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="cpu-small", help="models, batch and lengths [%(default)s]")
    add("--methods", type=_choices_of(METHODS), default="sft,gkd,promptkd", metavar="A,B,…", help="[%(default)s]")
    add(
        "--zero",
        type=_list_of(0, 3),
        default="3",
        metavar="N,…",
        help="ZeRO stage of both models; 0,3 measures unsharded and sharded ones [%(default)s]",
    )
    add(
        "--gather",
        type=_choices_of(get_args(GatherName)),
        default="auto",
        metavar="A,…",
        help="engine.gather of sharded models; layer,model measures both [%(default)s]",
    )
    add("--steps", type=at_least(1), default=3, metavar="N", help="measured steps of each method [%(default)s]")
    add(
        "--products",
        choices=get_args(ProductsName),
        default="onednn",
        help="what multiplies float32 on a CPU; torch does so by itself, and a peer does as torch does [%(default)s]",
    )
    add("--peer", choices=["trl"], help="also time TRL's DistillationTrainer on the same (extra bench)")
    return parser


def _scaling_parser() -> argparse.ArgumentParser:
    parser = _new_parser(
        "scaling",
        "How the teacher's bytes fall with the number of ranks, and what a PromptKD step costs as the response, the\n"
        "batch, the vocabulary and the soft prompt grow. Starts its ranks itself.",
    )
    add = parser.add_argument
    add(
        "--memory-ranks",
        type=_list_of(*range(1, 65)),
        default="1,2,4",
        metavar="N,…",
        help="numbers of ranks that share the teacher of cpu-small [%(default)s]",
    )
    add("--ranks", type=at_least(1), default=2, metavar="N", help="ranks that train [%(default)s]")
    add("--steps", type=at_least(1), default=3, metavar="N", help="measured steps at each point [%(default)s]")
    return parser


def _decoding_parser() -> argparse.ArgumentParser:
    parser = _new_parser(
        "decoding",
        "Tokens per second of this project's decoding loop, of transformers' generate and continuous batching, and\n"
        "of deepspeed.runtime.rollout, on responses as long as Dolly's: most short, a few long. On several ranks\n"
        "also from weights gathered out of ZeRO-3 shards, the gathering included:\n\n"
        "  deepspeed --num_gpus 2 --module evaluation.bench decoding",
    )
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="cpu-small", help="whose student decodes [%(default)s]")
    add("--prompts", type=at_least(1), default=64, metavar="N", help="prompts of each rank [%(default)s]")
    add("--repeats", type=at_least(1), default=3, metavar="N", help="the median of so many counts [%(default)s]")
    return parser


def _loss_parser() -> argparse.ArgumentParser:
    parser = _new_parser(
        "loss",
        "Peak memory and time of reverse KL with its gradients, from hidden states to those of the student's head:\n"
        "chunked (kd.losses) and plain (whole logits, autograd), each in fresh processes. Only on one process.",
    )
    add = parser.add_argument
    add("--positions", type=at_least(1), default=4096, metavar="N", help="response positions [%(default)s]")
    add("--vocabulary", type=at_least(2), default=151936, metavar="N", help="[%(default)s]")
    add("--student-width", type=at_least(1), default=512, metavar="N", help="[%(default)s]")
    add("--teacher-width", type=at_least(1), default=1024, metavar="N", help="[%(default)s]")
    add("--repeats", type=at_least(1), default=3, metavar="N", help="processes of each kind [%(default)s]")
    return parser


def _list_of(*allowed: int) -> Callable[[str], tuple[int, ...]]:
    def convert(text: str) -> tuple[int, ...]:
        words = text.split(",")
        for word in words:
            if not word.isdecimal() or int(word) not in allowed:
                shown = ", ".join(map(str, allowed)) if len(allowed) < 5 else f"{allowed[0]} to {allowed[-1]}"
                raise argparse.ArgumentTypeError(f"{word!r} is none of {shown}")
        return tuple(dict.fromkeys(map(int, words)))

    return convert


def _choices_of(known: tuple[T, ...]) -> Callable[[str], tuple[T, ...]]:
    def convert(text: str) -> tuple[T, ...]:
        by_name = {str(name): name for name in known}
        for name in text.split(","):
            if name not in by_name:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(by_name)}")
        return tuple(dict.fromkeys(by_name[name] for name in text.split(",")))

    return convert
