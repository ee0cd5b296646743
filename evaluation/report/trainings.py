"""How the runs were trained: a row for each, and its metrics as curves."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from evaluation.report.findings import Findings, Section
from evaluation.report.pictures import Axes, Picture, draw, label
from evaluation.report.tables import Cell, RowGroup, Table, text
from evaluation.report.training import SCORE, TrainingRun

FIRST = (SCORE, "validation/loss", "student_kd", "cross_entropy", "prompt_kd", "prompt_regularization")
"""Drawn before the others."""
# Of the schedule and of costs; the others are drawn.
_BOOKKEEPING = frozenset(
    {
        "step",
        "epoch",
        "regularization_weight",
        "learning_rate",
        "prompt_learning_rate",
        "response_tokens",
        "tokens_per_second",
        "peak_memory_bytes",
    }
)
_MAX_POINTS = 300
"""Of one line; more would make the page large and the line no clearer."""
_FEW_POINTS = 40
_LOG_RATIO = 8
"""Runs whose lengths differ by more share a logarithmic axis, or the short ones could not be seen."""
_MANY_DECADES = 2000


@dataclass(frozen=True, kw_only=True)
class Line:
    """A metric of one run."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def trainings_section(findings: Findings) -> Section:
    """All runs; empty without one."""
    runs = findings.outputs.trainings
    section = Section(key="training", title="Training")
    if not runs:
        return section
    return Section(
        key=section.key, title=section.title, tables=(_runs_table(runs),), pictures=tuple(_pictures(findings))
    )


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds is None:
        return "–"
    unit, name = _time_unit(seconds)
    return f"{seconds / unit:.3g} {name}"


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def _runs_table(runs: Sequence[TrainingRun]) -> Table:
    rows = []
    for run in runs:
        schedule, best = run.config.schedule, run.best
        planned = schedule.steps if schedule.epochs is None else None
        of = "" if planned in (None, run.num_steps) else f" of {planned}"
        rows.append(
            (
                text(run.name),
                text(run.method),
                text(f"{run.num_steps}{of}"),
                Cell(value=schedule.global_batch, digits=0),
                text(f"{run.config.optimizer.learning_rate:g}"),
                text(duration(run.seconds)),
                Cell(value=None if run.seconds is None else run.seconds / run.num_steps, digits=3),
                Cell(value=None if best is None else best[SCORE], digits=2),
                Cell(value=None if best is None else int(best["step"]), digits=0),
            )
        )
    return Table(
        key="trainings",
        title="Trainings",
        columns=(
            "run", "method", "steps", "sequences a step", "learning rate", "optimizer steps took", "s a step",
            "best validation ROUGE-L", "at step",
        ),
        groups=(RowGroup(title="", rows=tuple(rows)),),
        note="Time of the optimizer steps alone, without start, validation and checkpoints.",
    )  # fmt: skip


def _pictures(findings: Findings) -> Iterator[Picture]:
    runs = findings.outputs.trainings
    present = dict.fromkeys(
        name
        for run in runs
        for record in run.records
        for name in record
        if name not in _BOOKKEEPING and not name.endswith("_seconds")
    )
    names = [name for name in FIRST if name in present] + sorted(set(present) - set(FIRST))
    for name in names:
        lines = list(_lines(runs, name, over_time=False))
        key = f"curve-{re.sub(r'[^A-Za-z0-9]+', '-', name)}"
        yield draw(
            key, _curves(findings, lines, metric=name, x_label="optimizer step"), description=f"{name} over the steps."
        )
        if name == SCORE:
            timed = list(_lines(runs, name, over_time=True))
            unit, letters = _time_unit(max(max(line.x) for line in timed))
            timed = [Line(name=line.name, x=[x / unit for x in line.x], y=line.y) for line in timed]
            yield draw(
                f"{key}-over-time",
                _curves(findings, timed, metric=name, x_label=f"time of the optimizer steps [{letters}]"),
                description=f"{name} over the time that the optimizer steps took.",
            )


def _lines(runs: Sequence[TrainingRun], metric: str, *, over_time: bool) -> Iterator[Line]:
    for run in runs:
        records = [record for record in run.records if metric in record]
        if not records:
            continue
        x = [run.seconds_at[record["step"]] if over_time else float(record["step"]) for record in records]
        yield Line(name=run.name, x=thin(x), y=thin([float(record[metric]) for record in records]))


def thin(values: Sequence[float]) -> list[float]:
    """Means of neighbours where there are more values than a line can show."""
    if len(values) <= _MAX_POINTS:
        return list(values)
    return [float(part.mean()) for part in np.array_split(np.array(values), _MAX_POINTS)]


def _curves(findings: Findings, lines: Sequence[Line], *, metric: str, x_label: str) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        for line in lines:
            look = findings.looks[line.name]
            marker = look.marker if len(line.x) < _FEW_POINTS else None
            axes.plot(
                line.x, line.y, look.line, color=look.color, marker=marker, markersize=4, linewidth=1.6,
                label=label(line.name),
            )  # fmt: skip
        ends = [max(line.x) for line in lines]
        if max(ends) > _LOG_RATIO * min(ends) and min(min(line.x) for line in lines) > 0:
            _make_logarithmic(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(metric)
        axes.grid(visible=True)

    return paint


def _make_logarithmic(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _MANY_DECADES * low else (1,)))
    # Its own labels are formulas.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
