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
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from evaluation.command_options import (
    AnalysisOptions,
    CommandParser,
    add_analysis_options,
    analysis_options,
    at_least,
    make_directory,
    run_on_ranks,
)
from evaluation.intervals import CONFIDENCE
from evaluation.lineup import Lineup, line_up
from evaluation.model import EvaluatedModel
from evaluation.results import write_atomically
from evaluation.sequences import SampleSet, Work, sample, token_divergences
from evaluation.student_friendliness_page import ShownExample, page, print_table
from evaluation.student_friendliness_summary import Measured, response_text, summarise
from kd.config_file import read_config
from kd.data.encoding import Encoded
from kd.distributed import World
from kd.engines.soft_prompt import FILE_NAME, SoftPrompt, load_soft_prompt
from kd.errors import UserError
from kd.losses.divergences import forward_kl, reverse_kl

RESULTS = "student_friendliness.json"
PAGE = "student_friendliness.md"
STUDENTS = ("initial", "final")
_NAMED_BY_RUN = ("teacher", "soft_prompt", "initial", "final", "seen", "unseen")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    teacher: str
    soft_prompt: str
    initial: str
    final: str
    seen: str
    unseen: str
    max_sequence_tokens: int
    examples: int
    out: Path
    analysis: AnalysisOptions

    @property
    def data(self) -> dict[str, str]:
        return {"seen": self.seen, "unseen": self.unseen}


def measure(options: Options, *, world: World) -> None:
    """Measure both teachers against both students and write the results; all ranks call it together.

    Raises:
        UserError: on every rank, if an input cannot be used.
    """
    with world.agreed():
        lineup, rows, prompt = _prepare(options, world=world)
    work = Work(lineup=lineup, world=world)
    prompted = lineup.load(options.teacher, soft_prompt=prompt, world=world)
    teachers = [replace(prompted, soft_prompt=None), prompted]
    max_new_tokens = options.analysis.max_new_tokens
    samples: dict[str, tuple[SampleSet, SampleSet]] = {}
    for name, encoded in rows.items():
        plain, changed = (
            sample(work, teacher, encoded.examples, max_new_tokens=max_new_tokens, what=f"teacher on {name} rows")
            for teacher in teachers
        )
        samples[name] = (plain, changed)
    nats: dict[str, dict[str, np.ndarray]] = {name: {} for name in rows}
    answers = []
    for role in STUDENTS:
        student = lineup.load(getattr(options, role), world=world)
        for name, encoded in rows.items():
            nats[name][role] = _sums(work, student, teachers, encoded, what=f"{role} student on {name} rows")
        shown = rows["unseen"].examples[: options.examples]
        answers.append(sample(work, student, shown, max_new_tokens=max_new_tokens, what=f"{role} student"))
    with world.agreed():
        if world.is_main:
            measured = {
                name: Measured(rows=rows[name], nats=nats[name], samples=samples[name]) for name in options.data
            }
            _report(options, lineup, measured, answers, world=world)


def _prepare(options: Options, *, world: World) -> tuple[Lineup, dict[str, Encoded], SoftPrompt]:
    prompt, _ = load_soft_prompt(options.soft_prompt)
    lineup = line_up(options.teacher, [options.initial, options.final], options=options.analysis)
    rows = {
        name: lineup.read(source, responses="required", max_sequence_tokens=options.max_sequence_tokens)
        for name, source in options.data.items()
    }
    examples = [example for encoded in rows.values() for example in encoded.examples]
    longest = max(
        max(len(example.prompt_ids) + options.analysis.max_new_tokens, example.num_tokens) for example in examples
    )
    lineup.check_lengths(longest + prompt.num_tokens)
    if world.is_main:
        make_directory(options.out)
        for encoded in rows.values():
            for line in encoded.report.lines():
                print(line, file=sys.stderr)
    return lineup, rows, prompt


def _sums(
    work: Work, student: EvaluatedModel, teachers: Sequence[EvaluatedModel], rows: Encoded, *, what: str
) -> Float[np.ndarray, "B 2 2"]:
    sequences = [example.with_response() for example in rows.examples]
    values = token_divergences(work, student, teachers, sequences, divergences=[forward_kl, reverse_kl], what=what)
    return np.stack([of_row.sum(axis=2) for of_row in values])


def _report(
    options: Options, lineup: Lineup, measured: dict[str, Measured], answers: Sequence[SampleSet], *, world: World
) -> None:
    """Turn sums into means with intervals, write the files and print the table."""
    sets = {
        name: summarise(data, content, lineup=lineup)
        for (name, data), content in zip(options.data.items(), measured.values(), strict=True)
    }
    speakers = [*measured["unseen"].samples, *answers]
    shown = [
        ShownExample(
            row=example.row_id,
            prompt=example.prompt,
            reference=example.references[0],
            **dict(
                zip(
                    ("teacher_without_prompt", "teacher_with_prompt", "initial_student", "final_student"),
                    (response_text(samples[index][0].response_ids, lineup) for samples in speakers),
                    strict=True,
                )
            ),
        )
        for index, example in enumerate(measured["unseen"].rows.examples[: options.examples])
    ]
    models = {name: getattr(options, name) for name in ("teacher", "soft_prompt", "initial", "final")}
    results = {
        "format": "student_friendliness",
        "version": 1,
        **models,
        "num_ranks": world.size,
        "confidence": CONFIDENCE,
        "settings": {**asdict(options.analysis), "max_sequence_tokens": options.max_sequence_tokens},
        "sets": {name: asdict(content) for name, content in sets.items()},
        "examples": [asdict(example) for example in shown],
    }
    subtitle = ", ".join(f"{name.replace('_', ' ')} `{path}`" for name, path in models.items())
    write_atomically(options.out / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_atomically(options.out / PAGE, page(sets, shown, subtitle=subtitle))
    print_table(sets)


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
    return run_on_ranks(lambda world: measure(parse_options(argv), world=world))


if __name__ == "__main__":
    sys.exit(main())
