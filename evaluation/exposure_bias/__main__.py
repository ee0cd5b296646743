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

If it is killed, the same command goes on with the student it was at: unfinished.json has those before.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_options import (
    NAME,
    CommandParser,
    add_analysis_options,
    analysis_options,
    at_least,
    check_different,
    named,
)
from evaluation.exposure_bias.measurement import Options, measure
from evaluation.exposure_bias.progress import Course, Snapshot, course_of_run
from evaluation.ranks import run_on_ranks
from kd.errors import UserError


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
    check_different("--student", [student.name for student in values.student])
    check_different("--run and --checkpoint", [course.name for course in courses])
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
    return run_on_ranks(lambda: parse_options(argv), lambda options, world: measure(options, world=world))


if __name__ == "__main__":
    sys.exit(main())
