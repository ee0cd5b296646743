"""Exposure bias of students: excess accumulated error over generation steps and over training (Fig. 3 of the paper).

deepspeed --num_gpus 2 --module evaluation.analysis.exposure_bias --teacher DIR --data FILE --out DIR \\
    --student promptkd=runs/a/best --student sft=runs/b/best --run promptkd=runs/a

Writes exposure_bias.json, and exposure_bias.png and .svg. The JSON file (`"version": 1`) has

    teacher, data, num_requests, dropped_rows, num_ranks, confidence
    settings    the fields that decide the numbers
    students    {NAME: {model, curve}}: Fig. 3(a); curve has R, E [nats] and ExAccErr [%], each with lists value, low,
                high for l = 1, 2, … (null where it is not defined), and the lists num_student_samples and
                num_teacher_samples: the samples that reach each step
    progress    {NAME: {generation_steps, best_step, points}}: Fig. 3(b); a point has training_step, model, and R, E
                and ExAccErr at l = generation_steps, each with value, low, high

R(l) sums, over the steps t ≤ l, the mean KL(p‖q) at step t over the student's samples that have not ended before t.
The other reading of Eq. 6, nothing after the end, is Σ_t (R(t) - R(t-1)) · num_student_samples[t] / the first of them.
p is the teacher without a prompt. Intervals come from resampled rows.

The same command resumes a killed measurement: unfinished.json has the students that are complete.
"""

import sys
from collections.abc import Sequence

from evaluation.analysis.exposure_bias.config import ExposureConfig
from evaluation.analysis.exposure_bias.measure import measure
from evaluation.command import Command
from evaluation.settings import run_values

COMMAND = Command(
    config=ExposureConfig,
    program="python -m evaluation.analysis.exposure_bias",
    description=__doc__,
    flags={"data.file": "--data", "model.students": "--student", "model.checkpoints": "--checkpoint"},
    run_values=lambda runs: run_values(next(iter(runs.values()))),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says, and return the exit code."""
    return COMMAND.run_on_ranks(lambda config, world: measure(config, world=world), argv)


if __name__ == "__main__":
    sys.exit(main())
