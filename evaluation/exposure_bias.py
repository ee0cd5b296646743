"""Exposure bias of students: excess accumulated error over generation steps and over training (Fig. 3 of the paper).

deepspeed --num_gpus 2 --module evaluation.exposure_bias --teacher DIR --data FILE --out DIR \\
    --student promptkd=runs/a/best --student sft=runs/b/best --run promptkd=runs/a

Writes exposure_bias.json, and exposure_bias.png and .svg. The file, `"version": 1`, has

    teacher, data, num_requests, dropped_rows, num_ranks, confidence
    settings    the options that decide the numbers
    students    {NAME: {model, curve}}: Fig. 3(a); curve has R, E [nats] and ExAccErr [%], each with lists value, low,
                high for l = 1, 2, … (null where nothing can be said), and the lists num_student_samples and
                num_teacher_samples, how many samples reach each step
    progress    {NAME: {generation_steps, best_step, points}}: Fig. 3(b); a point has training_step, model, and R, E
                and ExAccErr at l = generation_steps, each with value, low, high

R(l) adds up, over the steps t ≤ l, the mean KL(p‖q) at step t over the student's samples that have not ended before t.
The other reading of Eq. 6, nothing after the end, is Σ_t (R(t) - R(t-1)) · num_student_samples[t] / the first of them.
p is the teacher without a prompt. Intervals come from resampled requests.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table

from evaluation.command_options import (
    NAME,
    AnalysisOptions,
    CommandParser,
    Named,
    add_analysis_options,
    analysis_options,
    at_least,
    make_directory,
    named,
    run_on_ranks,
)
from evaluation.exposure_bias_curve import ExposureBias, Series, StepSums, exposure_bias
from evaluation.exposure_bias_picture import draw
from evaluation.exposure_bias_progress import Course, Snapshot, course_of_run
from evaluation.intervals import CONFIDENCE, Estimate, resample
from evaluation.lineup import Lineup, line_up
from evaluation.model import EvaluatedModel
from evaluation.pictures import check_matplotlib
from evaluation.results import write_atomically
from evaluation.sequences import SampleSet, Work, sample, token_divergences
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

    def of(self, student: str, *, num_steps: int, what: str) -> ExposureBias:
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
    teacher = lineup.load(options.teacher, world=world)
    samples = sample(work, teacher, rows.examples, max_new_tokens=num_steps, what="teacher")
    measurement = Measurement(work=work, rows=rows, teacher=teacher, teacher_samples=samples)
    curves = {student.name: _curve(measurement, student) for student in options.students}
    progress = {
        course.name: _progress(measurement, course, num_steps=options.progress_steps) for course in options.courses
    }
    with world.agreed():
        if world.is_main:
            _report(options, rows, world=world, curves=curves, progress=progress)


def _prepare(options: Options, *, num_steps: int, world: World) -> tuple[Lineup, Encoded]:
    check_matplotlib()
    snapshots = [snapshot.model for course in options.courses for snapshot in course.snapshots]
    students = [student.path for student in options.students]
    lineup = line_up(options.teacher, [*students, *snapshots], options=options.analysis)
    rows = lineup.read(options.data, responses="optional")
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
    Console().print(_table(json.loads(text)))


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


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line (`sys.argv` if None), and which exports the runs on it have.

    Raises:
        UserError: an option that is unknown, missing or out of range, or a run without exports.
    """
    parser = CommandParser(
        prog="python -m evaluation.exposure_bias",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--teacher", required=True, metavar="DIR", help="p: from_pretrained directory or hub name")
    add("--data", required=True, metavar="FILE", help="rows with an instruction; their outputs are not used")
    add("--out", type=Path, required=True, metavar="DIR", help="gets exposure_bias.json, .png and .svg")
    add("--student", action="append", default=[], type=named, metavar="NAME=DIR", help="q, for Fig. 3(a); repeat it")
    add(
        "--run", action="append", default=[], type=named, metavar="NAME=DIR",
        help="run.dir of a training with checkpoints.export_every, for Fig. 3(b): its exports nearest to tenths of"
        " the best step",
    )  # fmt: skip
    add(
        "--checkpoint", action="append", default=[], type=_checkpoint, metavar="NAME:STEP=DIR",
        help="for Fig. 3(b), a student after STEP optimizer steps; repeat it",
    )  # fmt: skip
    add("--progress-steps", type=at_least(1), default=50, metavar="L", help="l of Fig. 3(b) [%(default)s]")
    add_analysis_options(parser, max_new_tokens=256, seeds="10,20,30,40,50")
    values = parser.parse_args(argv)
    courses = [course_of_run(run.name, Path(run.path)) for run in values.run]
    for name in dict.fromkeys(name for name, _ in values.checkpoint):
        own = sorted((one for of, one in values.checkpoint if of == name), key=lambda snapshot: snapshot.step)
        courses.append(Course(name=name, best_step=None, snapshots=tuple(own)))
    for kind, names in (
        ("--student", [student.name for student in values.student]),
        ("--run and --checkpoint", [course.name for course in courses]),
    ):
        if len(set(names)) < len(names):
            raise UserError(f"{kind}: a name is given twice; give each its own")
    if not values.student and not courses:
        raise UserError("nothing to measure: give --student, --run or --checkpoint; see --help")
    return Options(
        teacher=values.teacher,
        data=values.data,
        students=tuple(values.student),
        courses=tuple(courses),
        progress_steps=values.progress_steps,
        out=values.out,
        analysis=analysis_options(values),
    )


def _checkpoint(text: str) -> tuple[str, Snapshot]:
    match = re.fullmatch(rf"({NAME}):(\d+)=(.+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:STEP=DIR, such as promptkd:100=runs/a/step-100")
    return match[1], Snapshot(step=int(match[2]), model=match[3])


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    return run_on_ranks(lambda world: measure(parse_options(argv), world=world))


if __name__ == "__main__":
    sys.exit(main())
