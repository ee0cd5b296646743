"""python -m evaluation.bench: see --help."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from evaluation.bench.presets import PRESETS
from kd.distributed import exit_with_user_error
from kd.errors import UserError

_DESCRIPTION = """\
Cost of a training step by phase, with random models, for chosen methods and ZeRO stages:

  deepspeed --num_gpus 2 --module evaluation.bench --methods gkd,promptkd --zero 0,3 --peer trl

Each method trains through the same code as a real run, after three steps that warm up. Absolute times belong to one
machine: compare ratios of one call, on a machine that does nothing else. Two more commands, with their own --help:

  python -m evaluation.bench decoding    tokens per second of the decoder and of transformers' generate
  python -m evaluation.bench loss        time and memory of the fused loss and of a plain one
"""


def main(argv: Sequence[str]) -> int:
    """Do what the command line says, and return the exit code."""
    try:
        # Commands are imported where they start: --help and a typing error should not wait for DeepSpeed.
        match argv:
            case ["decoding", *rest]:
                parser = _new_parser("decoding", "Tokens per second of kd.rollout.decode and transformers.generate.")
                parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu-small", help="whose student")
                parser.add_argument("--prompts", type=at_least(1), default=64, metavar="N", dest="num_prompts")
                options = vars(parser.parse_args(rest))
                from evaluation.bench.decoding import run_decoding

                run_decoding(**options)
            case ["loss", *rest]:
                parser = _new_parser("loss", "Time and memory of reverse KL with its gradients: fused, and plain.")
                parser.add_argument("--positions", type=at_least(1), default=4096, metavar="N", help="[%(default)s]")
                parser.add_argument("--vocabulary", type=at_least(2), default=151936, metavar="N", help="[%(default)s]")
                options = vars(parser.parse_args(rest))
                from evaluation.bench.loss import run_loss

                run_loss(**options)
            case _:
                options = vars(_step_parser().parse_intermixed_args(argv))
                del options["local_rank"]
                from evaluation.bench.bench import run_bench

                run_bench(**options)
    except UserError as error:
        return exit_with_user_error(error)
    return 0


class CommandParser(argparse.ArgumentParser):
    """Reports a mistake as a user error, in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def at_least(smallest: int) -> Callable[[str], int]:
    """A reader of whole numbers of at least `smallest`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {smallest}")
        return int(text)

    return convert


def _new_parser(command: str, description: str) -> argparse.ArgumentParser:
    prog = f"python -m evaluation.bench {command}".strip()
    parser = CommandParser(prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path("runs") / f"bench-{command or 'step'}-{datetime.now():%Y%m%d-%H%M%S}"
    parser.add_argument("--out", type=Path, default=default, metavar="DIR", help="new directory for the results")
    return parser


def _step_parser() -> argparse.ArgumentParser:
    parser = _new_parser("", _DESCRIPTION)
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), default="cpu-small", help="models, batch and lengths [%(default)s]")
    add("--methods", type=_words, default="sft,gkd,promptkd", metavar="A,B,…", help="as `method` [%(default)s]")
    stages = "ZeRO stages; 3 partitions both models, 1 and 2 leave the teacher resident [%(default)s]"
    add("--zero", type=_zero_stages, default="3", metavar="N,…", help=stages)
    add("--gather", type=_words, default="auto", metavar="A,…", help="`engine.gather` of ZeRO-3 [%(default)s]")
    add("--steps", type=at_least(1), default=3, metavar="N", help="measured steps of each method [%(default)s]")
    add("--peer", choices=["trl"], help="also time TRL's DistillationTrainer with the same shapes (extra bench)")
    add("overrides", nargs="*", metavar="section.field=value", help="fields of the configuration of all runs")
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    add("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.split(",")))


def _zero_stages(text: str) -> tuple[int, ...]:
    for word in _words(text):
        if word not in ("0", "1", "2", "3"):
            raise argparse.ArgumentTypeError(f"{word!r} is no ZeRO stage (0 to 3)")
    return tuple(map(int, _words(text)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
