"""The configuration of the exposure-bias analysis, and the exports that stand for a training (Fig. 3b)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.settings import AnalysisConfig, AnalysisRows, Loading, read_run
from kd.config.fields import Count, option, required
from kd.errors import UserError
from kd.train.metric_log import FILE_NAME, read_metrics

EXPORTS = "exports"
"""Directory of a run with its students in from_pretrained form, each in step-<n>."""
NUM_PARTS = 10
_STEP = re.compile(r"step-(\d+)")
_CHECKPOINT = re.compile(r"(.+):(\d+)")


@dataclass(frozen=True, kw_only=True)
class Course:
    """Students of one training."""

    best_step: int | None
    """Step of the best validation; None where it is not known."""
    students: dict[int, str]
    """By the number of optimizer steps, in ascending order."""


@dataclass(frozen=True, kw_only=True)
class RowSection(AnalysisRows):
    file: str = required(help="rows with an instruction; their outputs are not used")


@dataclass(frozen=True, kw_only=True)
class ModelSection(Loading):
    teacher: str = required(help="p: from_pretrained directory or hub name")
    students: dict[str, str] | None = option(None, help="NAME: directory of q, for Fig. 3(a); the flag is repeated")
    checkpoints: dict[str, str] | None = option(
        None, help="NAME:STEP: for Fig. 3(b), the student after STEP optimizer steps"
    )


@dataclass(frozen=True, kw_only=True)
class ExposureConfig(AnalysisConfig):
    data: RowSection
    model: ModelSection
    run: dict[str, str] | None = option(
        None,
        help="NAME: run.dir of a training with checkpoints.export_every, for Fig. 3(b): its exports nearest to tenths"
        " of the best step. The first run gives teacher, template and limits that are not set here",
    )
    progress_steps: Count = option(50, help="l of Fig. 3(b)")
    out: Path = required(help="directory for exposure_bias.json, .png and .svg")

    def __post_init__(self) -> None:
        runs, names = self.run or {}, {_parse_checkpoint(key)[0] for key in self.model.checkpoints or {}}
        if both := sorted(runs.keys() & names):
            raise UserError(f"run and model.checkpoints both have {both[0]}; give each its own name")
        if not (self.model.students or runs or names):
            raise UserError("nothing to measure: give --student, --run or --checkpoint; see --help")

    def courses(self) -> dict[str, Course]:
        """The students that stand for each training, by its name.

        Raises:
            UserError: a run without exports or without metrics.
        """
        found = {name: course_of_run(Path(run)) for name, run in (self.run or {}).items()}
        students: dict[str, dict[int, str]] = {}
        for key, model in (self.model.checkpoints or {}).items():
            name, step = _parse_checkpoint(key)
            students.setdefault(name, {})[step] = model
        return found | {
            name: Course(best_step=None, students=dict(sorted(own.items()))) for name, own in students.items()
        }


def _parse_checkpoint(key: str) -> tuple[str, int]:
    match = _CHECKPOINT.fullmatch(key)
    if match is None:
        raise UserError(f"model.checkpoints: {key!r} is not NAME:STEP, such as promptkd:100=runs/a/exports/step-100")
    return match[1], int(match[2])


def course_of_run(run_dir: Path) -> Course:
    """The student that a run began with, if it can be found, and its exports nearest to tenths of the best step.

    Raises:
        UserError: no exports, or none of the run's files.
    """
    exports = {
        int(match[1]): path for path in (run_dir / EXPORTS).glob("step-*") if (match := _STEP.fullmatch(path.name))
    }
    if not exports:
        raise UserError(
            f"{run_dir}: has no {EXPORTS}/step-<n>; train with checkpoints.export_every=N, or name directories with"
            " --checkpoint NAME:STEP=DIR"
        )
    best_step = find_best_step(run_dir)
    start = read_run(run_dir).model.student
    students = {0: start} if Path(start).is_dir() else {}
    students |= {step: str(exports[step]) for step in nearest_steps(sorted(exports), best=best_step)}
    return Course(best_step=best_step, students=students)


def nearest_steps(steps: Sequence[int], *, best: int) -> list[int]:
    """For j = 1 … 10 the one of `steps` nearest to j/10 · best, each once; the earlier of two that are as near."""
    chosen = {
        min(steps, key=lambda step: (abs(NUM_PARTS * step - part * best), step)) for part in range(1, NUM_PARTS + 1)
    }
    return sorted(chosen)


def find_best_step(run_dir: Path) -> int:
    """Step of a run's best validation by the metric that selects best/; its last step without a validation.

    Raises:
        UserError: no metrics there, or none yet.
    """
    records = read_metrics(run_dir)
    if not records:
        raise UserError(f"{run_dir / FILE_NAME}: has no record yet; wait for the run's first validation")
    selecting = f"validation/{read_run(run_dir).validation.metric}"
    for key in (selecting, "validation/loss"):
        validated = [record for record in records if key in record]
        if validated:
            sign = -1 if key == "validation/loss" else 1
            # The first of equals, as the trainer keeps it.
            return int(max(validated, key=lambda record: sign * record[key])["step"])
    return int(records[-1]["step"])
