"""The trainings: a row for each run, its metrics as curves, and the settings that differ."""

import re
from typing import Any

import numpy as np
import pandas as pd

from evaluation.report.findings import Findings
from evaluation.report.page import Axes, Picture, Section, Table, draw

_VALIDATION, _LOSS = "validation/", "validation/loss"
# Drawn before the other metrics.
_FIRST = ("validation/rougeL", _LOSS, "student_kd", "cross_entropy", "prompt_kd", "prompt_regularization")
# Metrics of the schedule and of costs, which are not drawn.
_NOT_DRAWN = frozenset(
    {
        "step", "epoch", "seconds", "regularization_weight", "learning_rate", "prompt_learning_rate",
        "response_tokens", "tokens_per_second", "peak_memory_bytes",
    }
)  # fmt: skip
_MAX_POINTS = 300
"""Of one line; of more, means of neighbours are drawn."""
_FEW_POINTS = 40


def trainings_section(findings: Findings) -> Section:
    """All runs; empty without one."""
    tables = [runs_table(findings)] if findings.outputs.trainings else []
    return Section(key="training", title="Training", tables=tables, pictures=_curves(findings))


def settings_section(findings: Findings) -> Section:
    """Configuration, versions and devices where they differ; empty if nothing differs."""
    runs = findings.outputs.trainings
    values = pd.DataFrame({run.name: {**run.settings, **run.conditions} for run in runs}).map(shown)
    differing = values[values.nunique(axis=1) > 1].drop(index="run.dir", errors="ignore")
    table = Table(
        key="settings",
        title="Settings that differ",
        frame=differing.reset_index(names="setting"),
        note="Settings that are equal in all runs are left out, and run.dir. –: the run does not have it.",
    )
    return Section(key="settings", title="Differences between the runs", tables=[] if differing.empty else [table])


def shown(value: Any) -> str:
    """A setting as text; – where a run does not have it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if value is None or value != value:
        return "–"
    text = " ".join(str(value).split()).removesuffix(".0")
    return text.lower() if isinstance(value, bool) else text


def runs_table(findings: Findings) -> Table:
    """A row for each run: time, memory and the best validation."""
    rows = []
    for run in findings.outputs.trainings:
        settings, metrics = run.settings, run.metrics
        planned = None if settings.get("schedule.epochs") is not None else settings.get("schedule.steps")
        row: dict[str, object] = {
            "run": run.name,
            "method": run.method,
            "steps": str(run.num_steps) if planned in (None, run.num_steps) else f"{run.num_steps} of {planned}",
            "global batch": shown(settings.get("schedule.global_batch")),
            "learning rate": shown(settings.get("optimizer.learning_rate")),
            "minutes": (run.seconds or 0.0) / 60,
            "s per step": None if run.seconds is None else run.seconds / run.num_steps,
            "peak memory [GB]": metrics["peak_memory_bytes"].max() / 1e9,
        }
        for name in (name for name in metrics if name.startswith(_VALIDATION)):
            best = metrics[name].idxmin() if name == _LOSS else metrics[name].idxmax()
            row |= {f"best {name}": metrics[name][best], f"step of best {name}": metrics["step"][best]}
        rows.append(row)
    frame = pd.DataFrame(rows)
    return Table(
        key="trainings",
        title="Trainings",
        frame=frame,
        digits={name: 0 for name in frame if name.startswith("step of")}
        | {"s per step": 3, "peak memory [GB]": 2, f"best {_LOSS}": 3},
        note=(
            "Time of the optimizer steps, without start, validation and checkpoints. Peak memory: the most that one"
            " rank allocated (GB = 10⁹ bytes); on a CPU its resident memory, libraries included."
        ),
    )


def _curves(findings: Findings) -> list[Picture]:
    found = {name for run in findings.outputs.trainings for name in run.metrics if not name.endswith("_seconds")}
    names = sorted(found - _NOT_DRAWN, key=lambda one: (_FIRST.index(one) if one in _FIRST else len(_FIRST), one))
    axes = {name: ("step", "seconds") if name.startswith(_VALIDATION) else ("step",) for name in names}
    return [_curve(findings, name, over=over) for name in names for over in axes[name]]


def _curve(findings: Findings, metric: str, *, over: str) -> Picture:
    label = "optimizer step" if over == "step" else "time of the optimizer steps [s]"

    def paint(axes: Axes) -> None:
        for run in (run for run in findings.outputs.trainings if metric in run.metrics):
            line = run.metrics[[over, metric]].dropna()
            if len(line) > _MAX_POINTS:
                line = line.groupby(np.arange(len(line)) * _MAX_POINTS // len(line)).mean()
            marker = "o" if len(line) < _FEW_POINTS else None
            # matplotlib hides labels that begin with an underscore.
            axes.plot(line[over], line[metric], **findings.looks[run.name], marker=marker, label=f" {run.name}")
        axes.set_xlabel(label)
        axes.set_ylabel(metric)

    key = f"curve-{re.sub(r'[^A-Za-z0-9]+', '-', metric)}{'' if over == 'step' else '-over-time'}"
    return draw(key, paint, description=f"{metric} by {label}.")
