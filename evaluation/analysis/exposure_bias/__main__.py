"""Exposure bias of students: excess accumulated error over generation steps and over training (Fig. 3 of the paper).

deepspeed --num_gpus 2 --module evaluation.analysis.exposure_bias --teacher DIR --data FILE --out DIR \\
    --student promptkd=runs/a/best --student sft=runs/b/best --run promptkd=runs/a

Writes exposure_bias.json, .png and .svg (docs/analysis.md has the keys). p is the teacher without a prompt. Intervals
come from resampled rows. The same command resumes a killed measurement: unfinished.json has the complete students.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table

from evaluation.analysis.exposure_bias.config import Course, ExposureConfig
from evaluation.analysis.exposure_bias.curve import MIN_ROWS, ExposureBias, Series, StepSums, exposure_bias
from evaluation.analysis.exposure_bias.plot import draw
from evaluation.analysis.tokens import SampleSet, sample_sequences, score_tokens
from evaluation.command import Command
from evaluation.display import results_console
from evaluation.examples import print_report, read_examples
from evaluation.models import EvaluatedModel, ModelSet, find_models
from evaluation.pictures import check_matplotlib
from evaluation.results import describe_weights, digest, read_json, write_json
from evaluation.settings import run_values
from evaluation.statistics import CONFIDENCE, Estimate, resample
from kd.data.encoding import Encoded
from kd.distributed import World
from kd.errors import UserError
from kd.files import make_directory
from kd.losses.divergences import forward_kl

Json = dict[str, Any]

RESULTS = "exposure_bias.json"
UNFINISHED = "unfinished.json"

COMMAND = Command(
    config=ExposureConfig,
    program="python -m evaluation.analysis.exposure_bias",
    description=__doc__,
    flags={"data.file": "--data", "model.students": "--student", "model.checkpoints": "--checkpoint"},
    run_values=lambda runs: run_values(next(iter(runs.values()))),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """Everything that a student is measured against, and the students that are complete."""

    config: ExposureConfig
    models: ModelSet
    rows: Encoded
    teacher: EvaluatedModel
    teacher_samples: SampleSet
    curves: Json
    """By everything that decides a curve; the same on all ranks."""

    def curve(self, student: str, *, num_steps: int, label: str) -> Json:
        """The curve of a student, measured unless an earlier call with the same settings has completed it.

        Raises:
            UserError: on every rank, if the student cannot be loaded or the file of curves cannot be written.
        """
        world, config = self.models.world, self.config
        settings = {
            "teacher": describe_weights(config.model.teacher),
            "rows": digest([(example.row_id, example.prompt) for example in self.rows.examples]),
            "seeds": config.generation.seeds,
            "resamples": config.resamples,
            "dtype": config.model.dtype,
            "student": describe_weights(student),
            "num_steps": num_steps,
        }
        # The main rank decides: hosts may show different file times.
        key = world.from_main(digest(settings))
        if key not in self.curves:
            self.curves[key] = asdict(self._measure(student, num_steps=num_steps, label=label))
            with world.agreed():
                if world.is_main:
                    write_json(config.out / UNFINISHED, self.curves)
        curve: Json = self.curves[key]
        return curve

    def _measure(self, student: str, *, num_steps: int, label: str) -> ExposureBias:
        """Sample the student, and compare both models on the student's and on the teacher's samples."""
        model, sampling = self.models.load(student), self.config.generation
        own = sample_sequences(model, self.rows.examples, sampling=sampling, max_new_tokens=num_steps, label=label)
        sums = []
        for samples in (own, _clip(self.teacher_samples, num_steps)):
            scores = score_tokens(
                model,
                [self.teacher],
                [sequence for of_row in samples for sequence in of_row],
                divergences=[forward_kl],
                micro_batch=sampling.micro_batch,
                label=label,
            )
            values = iter([one.divergences[0, 0] for one in scores])
            sums.append(StepSums.of([[next(values) for _ in of_row] for of_row in samples], num_steps=num_steps))
        return exposure_bias(*sums, draws=resample(len(own), num_resamples=self.config.resamples))


def _clip(samples: SampleSet, num_steps: int) -> SampleSet:
    # Clipped samples equal those that the lower limit gives: a row's random numbers stay the same.
    return [[replace(one, response_ids=one.response_ids[:num_steps]) for one in of_row] for of_row in samples]


def measure(config: ExposureConfig, *, world: World) -> None:
    """Measure all students and write the results; all ranks call it together.

    Raises:
        UserError: on every rank, if an input cannot be used.
    """
    students, unfinished = config.model.students or {}, config.out / UNFINISHED
    curves: Json = {}
    with world.agreed():
        courses = config.courses()
        num_steps = max(config.generation.max_new_tokens if students else 0, config.progress_steps if courses else 0)
        models, rows = _prepare(config, courses, num_steps=num_steps, world=world)
        if world.is_main:
            make_directory(config.out)
            if unfinished.exists():
                curves = read_json(unfinished, advice="delete it to measure all students again")
    teacher = models.load(config.model.teacher)
    measurement = Measurement(
        config=config,
        models=models,
        rows=rows,
        teacher=teacher,
        teacher_samples=sample_sequences(
            teacher, rows.examples, sampling=config.generation, max_new_tokens=num_steps, label="teacher"
        ),
        curves=world.from_main(curves),
    )
    steps = config.generation.max_new_tokens
    found = {
        name: {"model": student, "curve": measurement.curve(student, num_steps=steps, label=name)}
        for name, student in students.items()
    }
    progress = {name: _progress(measurement, course, name=name) for name, course in courses.items()}
    with world.agreed():
        if world.is_main:
            _report(measurement, students=found, progress=progress)
            unfinished.unlink(missing_ok=True)


def _prepare(
    config: ExposureConfig, courses: Mapping[str, Course], *, num_steps: int, world: World
) -> tuple[ModelSet, Encoded]:
    check_matplotlib()
    students = [*(config.model.students or {}).values()]
    students += [student for course in courses.values() for student in course.students.values()]
    models = find_models([config.model.teacher, *students], loading=config.model, world=world)
    rows = read_examples(config.data.file, tokenizer=models.tokenizer, prompts=config.data, responses="optional")
    if len(rows.examples) < MIN_ROWS:
        raise UserError(
            f"{config.data.file}: {len(rows.examples)} rows have a prompt that is short enough, a curve needs"
            f" {MIN_ROWS} or more; give more rows, or raise data.rows or data.max_prompt_tokens"
        )
    models.check_lengths(max(len(example.prompt_ids) for example in rows.examples) + num_steps)
    if world.is_main:
        print_report(rows)
    return models, rows


def _progress(measurement: Measurement, course: Course, *, name: str) -> Json:
    num_steps = measurement.config.progress_steps
    points = []
    for step, student in course.students.items():
        curve = measurement.curve(student, num_steps=num_steps, label=f"{name}, step {step}")
        numbers = {key: asdict(Series(**curve[key]).at(num_steps)) for key in ("R", "E", "ExAccErr")}
        points.append({"training_step": step, "model": student, **numbers})
    return {"generation_steps": num_steps, "best_step": course.best_step, "points": points}


def _report(measurement: Measurement, *, students: Json, progress: Json) -> None:
    """Write the results, draw them, and print a table."""
    config, rows = measurement.config, measurement.rows
    results = {
        "format": "exposure_bias",
        "version": 1,
        "teacher": config.model.teacher,
        "data": config.data.file,
        "num_requests": len(rows.examples),
        "dropped_rows": len(rows.report.dropped),
        "num_ranks": measurement.models.world.size,
        "confidence": CONFIDENCE,
        "settings": config.settings,
        "students": students,
        "progress": progress,
    }
    write_json(config.out / RESULTS, results)
    draw(results, stem=config.out / "exposure_bias")
    results_console().print(_table(students, progress))


def _table(students: Json, progress: Json) -> Table:
    """ExAccErr(l) at the last l of each curve that has a value."""
    table = Table("student", "l", "ExAccErr(l) [%]")
    for name, content in students.items():
        series = Series(**content["curve"]["ExAccErr"])
        last = max((step for step, value in enumerate(series.value, start=1) if value is not None), default=1)
        table.add_row(name, str(last), str(series.at(last)))
    for name, content in progress.items():
        for point in content["points"]:
            length = str(content["generation_steps"])
            table.add_row(f"{name}, step {point['training_step']}", length, str(Estimate(**point["ExAccErr"])))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run_on_ranks(lambda config, world: measure(config, world=world), argv)


if __name__ == "__main__":
    sys.exit(main())
