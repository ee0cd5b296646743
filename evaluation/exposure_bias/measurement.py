"""Samples of teacher and students, what they are apart on them, and the files that say so."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.table import Table

from evaluation.command_options import AnalysisOptions, Named, make_directory
from evaluation.exposure_bias.curve import MIN_REQUESTS, ExposureBias, Series, StepSums, exposure_bias
from evaluation.exposure_bias.finished import FinishedStudents
from evaluation.exposure_bias.picture import draw
from evaluation.exposure_bias.progress import Course
from evaluation.identity import describe_weights, digest
from evaluation.intervals import CONFIDENCE, Estimate, resample
from evaluation.lineup import Lineup, line_up
from evaluation.model import EvaluatedModel
from evaluation.pictures import check_matplotlib
from evaluation.results import write_atomically
from evaluation.sequences import SampleSet, Work, sample, token_divergences
from evaluation.terminal import results_console
from kd.data.batch import TokenSequence
from kd.data.encoding import Encoded
from kd.distributed import World
from kd.errors import UserError
from kd.losses.divergences import forward_kl

Json: TypeAlias = dict[str, Any]

RESULTS = "exposure_bias.json"
_SHOWN_STEPS = (5, 10, 20, 50, 100, 200)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure; `courses` come from --run and --checkpoint."""

    teacher: str
    data: str
    students: tuple[Named, ...]
    courses: tuple[Course, ...]
    progress_steps: int
    out: Path
    analysis: AnalysisOptions


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """What every student is measured against."""

    work: Work
    rows: Encoded
    teacher: EvaluatedModel
    teacher_samples: SampleSet
    finished: FinishedStudents

    def of(self, student: str, *, num_steps: int, what: str) -> ExposureBias:
        """The curve of a student, measured unless an earlier call with the same settings has finished it."""
        curve = self.finished.find(student, num_steps=num_steps)
        if curve is None:
            curve = self._measure(student, num_steps=num_steps, what=what)
            self.finished.keep(student, curve, num_steps=num_steps)
        return curve

    def _measure(self, student: str, *, num_steps: int, what: str) -> ExposureBias:
        """Sample the student, and compare both models on the student's and on the teacher's samples."""
        model = self.work.lineup.load(student, world=self.work.world)
        own = sample(self.work, model, self.rows.examples, max_new_tokens=num_steps, what=what)
        sums = []
        for samples in (own, _cut(self.teacher_samples, num_steps)):
            divergences = token_divergences(
                self.work,
                model,
                [self.teacher],
                [sequence for of_request in samples for sequence in of_request],
                divergences=[forward_kl],
                what=what,
            )
            per_request = len(self.work.lineup.options.seeds)
            values = [of_sequence[0, 0] for of_sequence in divergences]
            groups = [values[start : start + per_request] for start in range(0, len(values), per_request)]
            sums.append(StepSums.of(groups, num_steps=num_steps))
        draws = resample(len(own), num_resamples=self.work.lineup.options.resamples)
        return exposure_bias(sums[0], sums[1], resamples=draws)


def _cut(samples: SampleSet, num_steps: int) -> SampleSet:
    # Cut samples are what sampling with the lower limit would have given: a row's random numbers stay the same.
    return [
        [
            TokenSequence(row_id=one.row_id, prompt_ids=one.prompt_ids, response_ids=one.response_ids[:num_steps])
            for one in of_request
        ]
        for of_request in samples
    ]


def measure(options: Options, *, world: World) -> None:
    """Measure all students and write the results; all ranks call it together.

    Raises:
        UserError: on every rank, if an input cannot be used.
    """
    num_steps = max(
        options.analysis.max_new_tokens if options.students else 0, options.progress_steps if options.courses else 0
    )
    with world.agreed():
        lineup, rows = _prepare(options, num_steps=num_steps, world=world)
    work = Work(lineup=lineup, world=world)
    finished = FinishedStudents(options.out, settings=_settings(options, rows), world=world)
    teacher = lineup.load(options.teacher, world=world)
    samples = sample(work, teacher, rows.examples, max_new_tokens=num_steps, what="teacher")
    measurement = Measurement(work=work, rows=rows, teacher=teacher, teacher_samples=samples, finished=finished)
    curves = {student.name: _curve(measurement, student) for student in options.students}
    progress = {
        course.name: _progress(measurement, course, num_steps=options.progress_steps) for course in options.courses
    }
    with world.agreed():
        if world.is_main:
            _report(options, rows, world=world, curves=curves, progress=progress)
            finished.remove()


def _settings(options: Options, rows: Encoded) -> Json:
    """What decides a curve beside the student and its number of steps; sizes of batches do not."""
    analysis = options.analysis
    return {
        "teacher": describe_weights(options.teacher),
        "rows": digest([(example.row_id, example.prompt) for example in rows.examples]),
        "seeds": analysis.seeds,
        "resamples": analysis.resamples,
        "dtype": analysis.dtype,
    }


def _prepare(options: Options, *, num_steps: int, world: World) -> tuple[Lineup, Encoded]:
    check_matplotlib()
    snapshots = [snapshot.model for course in options.courses for snapshot in course.snapshots]
    students = [student.path for student in options.students]
    lineup = line_up(options.teacher, [*students, *snapshots], options=options.analysis)
    rows = lineup.read(options.data, responses="optional")
    if len(rows.examples) < MIN_REQUESTS:
        raise UserError(
            f"{options.data}: {len(rows.examples)} rows have a prompt that is short enough, a curve needs"
            f" {MIN_REQUESTS} or more; give more rows, or raise --rows or --max-prompt-tokens"
        )
    lineup.check_lengths(max(len(example.prompt_ids) for example in rows.examples) + num_steps)
    if world.is_main:
        make_directory(options.out)
        for line in rows.report.lines():
            print(line, file=sys.stderr)
    return lineup, rows


def _curve(measurement: Measurement, student: Named) -> Json:
    num_steps = measurement.work.lineup.options.max_new_tokens
    bias = measurement.of(student.path, num_steps=num_steps, what=student.name)
    return {"model": student.path, "curve": asdict(bias)}


def _progress(measurement: Measurement, course: Course, *, num_steps: int) -> Json:
    points = []
    for snapshot in course.snapshots:
        bias = measurement.of(snapshot.model, num_steps=num_steps, what=f"{course.name}, step {snapshot.step}")
        numbers = {name: asdict(getattr(bias, name).at(num_steps)) for name in ("R", "E", "ExAccErr")}
        points.append({"training_step": snapshot.step, "model": snapshot.model, **numbers})
    return {"generation_steps": num_steps, "best_step": course.best_step, "points": points}


def _report(options: Options, rows: Encoded, *, world: World, curves: Json, progress: Json) -> None:
    """Write the results, draw them, and print ExAccErr at some steps."""
    results = {
        "format": "exposure_bias",
        "version": 1,
        "teacher": options.teacher,
        "data": options.data,
        "num_requests": len(rows.examples),
        "dropped_rows": len(rows.report.dropped),
        "num_ranks": world.size,
        "confidence": CONFIDENCE,
        "settings": asdict(options.analysis),
        "students": curves,
        "progress": progress,
    }
    # As JSON has them, with lists for tuples: what the report page will read is what is drawn here.
    text = json.dumps(results, indent=1, allow_nan=False)
    write_atomically(options.out / RESULTS, text + "\n")
    draw(json.loads(text), stem=options.out / "exposure_bias")
    results_console().print(_table(json.loads(text)))


def _table(results: Json) -> Table:
    table = Table("student", title="ExAccErr(l) in percent, with 95 % intervals")
    lengths = {len(content["curve"]["ExAccErr"]["value"]) for content in results["students"].values()}
    lengths |= {content["generation_steps"] for content in results["progress"].values()}
    shown = sorted({step for step in _SHOWN_STEPS if step < max(lengths)} | lengths)
    for step in shown:
        table.add_column(f"l = {step}", justify="right")
    for name, content in results["students"].items():
        series = Series(**content["curve"]["ExAccErr"])
        table.add_row(name, *(str(series.at(step)) if step <= len(series.value) else "" for step in shown))
    for name, content in results["progress"].items():
        for point in content["points"]:
            cells = {content["generation_steps"]: str(Estimate(**point["ExAccErr"]))}
            table.add_row(f"{name}, step {point['training_step']}", *(cells.get(step, "") for step in shown))
    return table
