"""Which exported students stand for the course of a training: those nearest to tenths of its best step (Fig. 3b)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.records import read_records
from kd.config.load import read_config
from kd.errors import UserError
from kd.train.metric_log import FILE_NAME

EXPORTS = "exports"
"""Directory of a run with its students in from_pretrained form, each in step-<n>."""
_STEP = re.compile(r"step-(\d+)")
NUM_PARTS = 10


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A student as it was after `step` optimizer steps."""

    step: int
    model: str


@dataclass(frozen=True, kw_only=True)
class Course:
    """Students of one training in the order of their steps."""

    name: str
    best_step: int | None
    """Step of the best validation; None where nobody said."""
    snapshots: tuple[Snapshot, ...]


def course_of_run(name: str, run_dir: Path) -> Course:
    """The student that a run began with, if it can be found, and its exports nearest to tenths of the best step.

    Raises:
        UserError: no exports, or none of the run's files.
    """
    places = {
        int(match[1]): path for path in (run_dir / EXPORTS).glob("step-*") if (match := _STEP.fullmatch(path.name))
    }
    if not places:
        raise UserError(
            f"{run_dir}: has no {EXPORTS}/step-<n>; train with checkpoints.export_every=N, or name directories with"
            " --checkpoint NAME:STEP=DIR"
        )
    best_step = find_best_step(run_dir)
    snapshots = [Snapshot(step=step, model=str(places[step])) for step in nearest_steps(sorted(places), best=best_step)]
    start = read_config(run_dir / "config.yaml").model.student
    if Path(start).is_dir():
        snapshots.insert(0, Snapshot(step=0, model=start))
    return Course(name=name, best_step=best_step, snapshots=tuple(snapshots))


def nearest_steps(steps: Sequence[int], *, best: int) -> list[int]:
    """For j = 1 … 10 the one of `steps` nearest to j/10 · best, each once; of two as near, the earlier."""
    chosen = {
        min(steps, key=lambda step: (abs(NUM_PARTS * step - part * best), step)) for part in range(1, NUM_PARTS + 1)
    }
    return sorted(chosen)


def find_best_step(run_dir: Path) -> int:
    """Step of a run's best validation by ROUGE-L, or by loss without it; its last step if it had none.

    Raises:
        UserError: no metrics there, or none yet.
    """
    records = read_records(run_dir)
    if not records:
        raise UserError(f"{run_dir / FILE_NAME}: has no record yet; wait for the run's first validation")
    for key, sign in (("validation/rougeL", 1), ("validation/loss", -1)):
        validated = [record for record in records if key in record]
        if validated:
            # The first of equals, as the trainer keeps it.
            return int(max(validated, key=lambda record: sign * record[key])["step"])
    return int(records[-1]["step"])
