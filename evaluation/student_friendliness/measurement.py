"""Distances and responses of both teachers and both students, and the files that tell them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from evaluation.command_options import AnalysisOptions, make_directory
from evaluation.intervals import CONFIDENCE
from evaluation.lineup import Lineup, line_up
from evaluation.model import EvaluatedModel
from evaluation.results import write_atomically
from evaluation.sequences import SampleSet, Work, sample, token_divergences
from evaluation.student_friendliness.page import ShownExample, page, print_table
from evaluation.student_friendliness.summary import Measured, response_text, summarise
from kd.data.encoding import Encoded
from kd.distributed import World
from kd.losses.divergences import forward_kl, reverse_kl
from kd.models.soft_prompt import SoftPrompt, load_soft_prompt

RESULTS = "student_friendliness.json"
PAGE = "student_friendliness.md"
STUDENTS = ("initial", "final")


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
