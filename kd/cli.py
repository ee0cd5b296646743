"""The console script `promptkd`. Each command imports what it needs after its arguments are parsed."""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kd.errors import EXIT_CODE, STOPPED_CODE, RunStopped, UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand that the command line names, and return its exit code."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="promptkd",
        usage="promptkd COMMAND [arguments …]",
        description="Distillation of large language models with a prompt-tuned teacher (PromptKD).",
        epilog="\n".join(
            ["commands:"]
            + [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
            + ["", "promptkd COMMAND --help lists a command's options. With several GPUs:", f"  {_LAUNCH}"]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    _ignore_local_rank(parser)
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser.print_help(sys.stderr)
        return EXIT_CODE
    arguments = parser.parse_args(argv)
    run, _ = COMMANDS[arguments.command]
    return run(arguments.arguments)


def train(argv: Sequence[str], *, only: str | None = None) -> int:
    """Train with the arguments of a command line, and return the exit code.

    Args:
        argv: arguments, without the name of the program.
        only: the method that the calling script is for; None for any.
    """
    parser = _TrainParser(
        prog="promptkd train",
        description=f"Train with {only or 'any method'}. With several GPUs: {_LAUNCH}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(parser)
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and exit")
    parser.add_argument("--list-presets", action=_ListPresets, nargs=0, help="print the names of all presets and exit")
    arguments = parser.parse_intermixed_args(argv)

    def work() -> None:
        import kd

        config = kd.load_config(arguments.config, overrides=arguments.overrides)
        if only is not None and config.method != only:
            raise UserError(f"method is {config.method}, but this script runs {only} only; use launch/train.py")
        if arguments.print_config:
            from kd.config.load import to_yaml

            print(to_yaml(config), end="")
        else:
            kd.train(config)

    return _exit_code(work)


def generate(argv: Sequence[str]) -> int:
    """Write the teacher's responses, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="promptkd generate",
        description="Write data.responses: the teacher's responses to each row of data.train, seqkd.samples of each,\n"
        "from which method=seqkd learns. One configuration serves both. The same command completes an\n"
        "interrupted file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(parser)
    arguments = parser.parse_intermixed_args(argv)

    def work() -> None:
        import kd

        kd.generate(kd.load_config(arguments.config, overrides=arguments.overrides))

    return _exit_code(work)


def show_data(argv: Sequence[str]) -> int:
    """Print the first training rows in tokens, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="promptkd show-data",
        description="Print the first rows of data.train as the models read them: prompt, response and end token in\n"
        "colour, with a bar between tokens. Needs the student's tokenizer, and no weights.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(parser)
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="number of rows (default: 3)")
    arguments = parser.parse_intermixed_args(argv)

    def work() -> None:
        import kd
        from kd.train.show_data import show_data

        show_data(kd.load_config(arguments.config, overrides=arguments.overrides), num_rows=arguments.rows)

    return _exit_code(work)


def make_student(argv: Sequence[str]) -> int:
    """Make a student from some of a teacher's layers, and return the exit code."""
    parser = argparse.ArgumentParser(prog="promptkd make-student", description="Keep some of a teacher's layers.")
    add = parser.add_argument
    add("--teacher", required=True, metavar="DIR", help="from_pretrained directory or hub name")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--layers", metavar="0,2,4", help="the teacher's layers to keep, counted from 0")
    choice.add_argument("--keep", type=int, metavar="N", help="keep N evenly spaced layers, first and last included")
    add("--out", required=True, type=Path, metavar="DIR", help="directory of the student; must not exist")
    add("--dtype", choices=["bf16", "fp16", "fp32"], help="precision of the weights (default: the teacher's)")
    add("--trust-remote-code", action="store_true", help="allow model code that comes with the teacher")
    arguments = parser.parse_args(argv)

    def work() -> None:
        import transformers

        from kd.distributed.session import select_accelerator

        select_accelerator()
        from kd.models.prune import prune_layers

        transformers.utils.logging.disable_progress_bar()
        teacher, student = prune_layers(
            arguments.teacher,
            layers=arguments.keep if arguments.layers is None else _parse_layers(arguments.layers),
            out=arguments.out,
            dtype=arguments.dtype,
            trust_remote_code=arguments.trust_remote_code,
        )
        print(teacher, student, sep="\n")

    return _exit_code(work)


def plan(argv: Sequence[str]) -> int:
    """Print the plan of a run; the exit code is 0 if it fits, and 1 if it does not."""
    parser = argparse.ArgumentParser(
        prog="promptkd plan",
        description="Print the memory of a run on each GPU by phase, from shapes alone: without weights and GPUs, and\n"
        "for the paper's models without a network. If the run does not fit, print the smallest change with which it\n"
        "does. "
        "Exit code: 0 fits, 1 does not fit, 2 the configuration cannot be used.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="YAML file of the run, or the name of a preset")
    source.add_argument(
        "--presets", action="store_true", help="instead, a Markdown table of all presets on 4 and 8 GPUs"
    )
    add("--gpus", type=int, default=4, metavar="N", help="number of GPUs, one rank each (default: 4)")
    add("--gpu", default="a100-80gb", metavar="NAME", help="a100-40gb, a100-80gb (default), h100-80gb or h200-141gb")
    add("--gpu-memory", metavar="80GB", help="memory of each GPU, in GB as it is sold, or GiB (default: that of --gpu)")
    add("--gpus-per-host", type=int, default=8, metavar="N", help="GPUs of one host (default: 8)")
    add("--rows", type=int, metavar="N", help="training rows, to turn schedule.epochs into steps (default: count them)")
    add("overrides", nargs="*", metavar="section.field=value", help="fields that differ from the file")
    arguments = parser.parse_intermixed_args(argv)
    fits = True

    def work() -> None:
        nonlocal fits
        from kd.distributed.session import select_accelerator

        select_accelerator()
        import kd
        from kd.plan.show import show_plan, show_presets

        if arguments.presets:
            show_presets()
            return
        fits = show_plan(
            kd.load_config(arguments.config, overrides=arguments.overrides),
            num_gpus=arguments.gpus,
            gpu_name=arguments.gpu,
            gpu_memory=arguments.gpu_memory,
            gpus_per_host=arguments.gpus_per_host,
            num_rows=arguments.rows,
        )

    return _exit_code(work) or int(not fits)


def check(argv: Sequence[str]) -> int:
    """Verify the checkpoints and exports of runs; the exit code is 0 if all are whole, and 1 if one is damaged."""
    parser = argparse.ArgumentParser(
        prog="promptkd check",
        description="Compare the checkpoints and exports of runs with the checksums that were written with them.\n"
        "Exit code: 0 all whole, 1 one is damaged, 2 not a run.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="run.dir of a training")
    arguments = parser.parse_args(argv)
    whole: list[bool] = []

    def work() -> None:
        from kd.train.check import check_run

        whole.extend(check_run(run) for run in arguments.runs)

    return _exit_code(work) or int(not all(whole))


def _delegate(module: str) -> Callable[[Sequence[str]], int]:
    """The `main` function of a module, which is imported when it runs."""

    def run(argv: Sequence[str]) -> int:
        code: int = importlib.import_module(module).main(argv)
        return code

    return run


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train, "train a student from a YAML file; --list-presets lists those that are included"),
    "generate": (generate, "write the teacher's responses, from which method=seqkd learns"),
    "evaluate": (_delegate("evaluation.scoring"), "sample a model's responses to benchmarks and score them"),
    "show-data": (show_data, "the first training rows in tokens: prompt, response and end in colour"),
    "compare": (_delegate("evaluation.compare"), "paired differences between evaluated models"),
    "check": (check, "whether checkpoints and exports of a run are undamaged"),
    "plan": (plan, "memory of a run by phase, what fits, and its estimated cost"),
    "report": (_delegate("evaluation.report.__main__"), "one page of trainings and evaluations: tables and figures"),
    "make-student": (make_student, "make a student from some of a teacher's layers"),
}
"""Subcommands: what runs their arguments and returns the exit code, and their help."""
_LAUNCH = "torchrun --nproc_per_node N -m kd train --config FILE"


class _TrainParser(argparse.ArgumentParser):
    """Lists the fields of the configuration, for which all methods are imported, only if help is printed."""

    def format_help(self) -> str:
        from kd.config.load import describe_fields
        from kd.methods import config_type, requested_method

        described = list(describe_fields(config_type(requested_method(sys.argv[1:]))))
        width = max(len(name) for name, _, _ in described)
        lines = [f"  {name:<{width}}  {text} [{default}]" for name, default, text in described]
        self.epilog = "fields of the configuration, with their defaults:\n" + "\n".join(lines)
        return super().format_help()


class _ListPresets(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *arguments: object) -> None:
        from kd.config.packaged import list_presets

        presets = dict(list_presets())
        width = max(map(len, presets))
        for name, description in presets.items():
            print(f"{name:<{width}}  {description}")
        parser.exit()


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE",
        help="YAML file of the run, or the name of a preset; `extends: FILE` in it names another to start from",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="fields that differ from the file")
    _ignore_local_rank(parser)


def _ignore_local_rank(parser: argparse.ArgumentParser) -> None:
    # DeepSpeed's launcher passes it; ranks are read from the environment.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def _parse_layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--layers {text}: expected numbers with commas between them, such as 0,2,4") from None


def _exit_code(work: Callable[[], None]) -> int:
    try:
        work()
    except UserError as error:
        from kd.distributed import exit_with_user_error

        return exit_with_user_error(error)
    except RunStopped:
        # The launcher ends ranks that are slower to leave: the interpreter would restore the default handler.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        return STOPPED_CODE
    return 0
