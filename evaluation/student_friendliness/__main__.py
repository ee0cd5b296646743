"""What the prompt does to the teacher: distance to the student, quality, and examples (Tables 2 and 4 of the paper).

deepspeed --num_gpus 2 --module evaluation.student_friendliness --run runs/NAME --out DIR

A run of PromptKD names everything: its teacher, the student it began with, final/ with the soft prompt, and its
training (seen) and validation (unseen) rows. Each can be given instead. Rows need an output.

Writes student_friendliness.md, a page with table and examples, and student_friendliness.json, `"version": 1`:

    teacher, soft_prompt, initial, final, num_ranks, confidence
    settings    the options that decide the numbers
    sets        {seen, unseen}, each with data, num_rows, num_tokens, dropped_rows, and the three columns
                without_prompt, with_prompt and difference (with minus without, paired by row). A column has
                initial and final, each with forward_kl, KL(p‖q), and reverse_kl, KL(q‖p) [nats per token of the
                rows' outputs], and rougeL (×100) and response_tokens of the teacher's own responses; all of them as
                value, low, high
    examples    the first unseen rows: prompt, reference, and the response of each model to the first seed

Divergences are means over tokens, end token included; intervals come from resampled rows.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_options import CommandParser, add_analysis_options, analysis_options, at_least
from evaluation.ranks import run_on_ranks
from evaluation.student_friendliness.measurement import PAGE, RESULTS, Options, measure
from kd.config.load import read_config
from kd.errors import UserError
from kd.models.soft_prompt import FILE_NAME

_NAMED_BY_RUN = ("teacher", "soft_prompt", "initial", "final", "seen", "unseen")


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line (`sys.argv` if None), and the run that it names.

    Raises:
        UserError: an option that is unknown, missing or out of range, or no such run.
    """
    parser = CommandParser(
        prog="python -m evaluation.student_friendliness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--run", type=Path, metavar="DIR", help="run.dir of PromptKD, in place of the next six and of three limits")
    add("--teacher", metavar="DIR", help="p: from_pretrained directory or hub name")
    add("--soft-prompt", metavar="FILE", help="P: soft_prompt.safetensors of a run [final/ of --run]")
    add("--initial", metavar="DIR", help="the student at the beginning of distillation")
    add("--final", metavar="DIR", help="the student at its end [final/ of --run]")
    add("--seen", metavar="FILE", help="rows that were trained on, with outputs")
    add("--unseen", metavar="FILE", help="rows that were not, with outputs")
    add("--out", type=Path, required=True, metavar="DIR", help=f"gets {RESULTS} and {PAGE}")
    add("--max-sequence-tokens", type=at_least(2), default=512, metavar="N", help="outputs are cut there [%(default)s]")
    add("--examples", type=at_least(0), default=8, metavar="N", help="unseen rows shown, the first N [%(default)s]")
    add_analysis_options(parser, max_new_tokens=256, seeds="10")
    run = parser.parse_args(argv).run
    if run is not None:
        parser.set_defaults(**_defaults_of(run))
    values = parser.parse_args(argv)
    for name in _NAMED_BY_RUN:
        if getattr(values, name) is None:
            raise UserError(f"--{name.replace('_', '-')} is missing; give it, or --run with a PromptKD run that has it")
    return Options(
        **{name: getattr(values, name) for name in (*_NAMED_BY_RUN, "max_sequence_tokens", "examples", "out")},
        analysis=analysis_options(values),
    )


def _defaults_of(run: Path) -> dict[str, str | int | None]:
    config = read_config(run / "config.yaml")
    return {
        "teacher": config.model.teacher,
        "soft_prompt": str(run / "final" / FILE_NAME),
        "initial": config.model.student,
        "final": str(run / "final"),
        "seen": config.data.train,
        "unseen": config.data.validation,
        "template": config.data.template,
        "max_prompt_tokens": config.data.max_prompt_tokens,
        "max_sequence_tokens": config.data.max_sequence_tokens,
        "max_new_tokens": config.generation.max_new_tokens,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    return run_on_ranks(lambda: parse_options(argv), lambda options, world: measure(options, world=world))


if __name__ == "__main__":
    sys.exit(main())
