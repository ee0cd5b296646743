"""The scores of the evaluated models: table, bars, paired differences and the details of every evaluation."""

from collections.abc import Sequence

import pandas as pd

from evaluation.compare import paired_difference, read_row_scores
from evaluation.report.findings import MEAN, Findings
from evaluation.report.models import Model, metrics_of
from evaluation.report.page import ERROR, HIGH, LOW, Axes, Picture, Section, Table, draw

_BAR = 0.3
"""Height of a bar with its gap [inches]."""


def scores_section(findings: Findings) -> Section:
    """All scores; empty without an evaluation.

    Raises:
        UserError: a file of generations is broken.
    """
    if not findings.models:
        return Section(key="scores", title="Scores")
    tables = [_scores_table(findings), _details_table(findings)]
    if findings.base is not None and len(findings.models) > 1:
        tables.insert(1, _differences_table(findings, findings.base))
    pictures = [_bars(findings)] if findings.shared_benchmarks else []
    return Section(key="scores", title="Scores", pictures=pictures, tables=tables)


def best_students(frame: pd.DataFrame, *, students: Sequence[bool], by: Sequence[str]) -> pd.DataFrame:
    """Mark the best number of each column among the students, by row, that have the same values in the columns `by`."""
    numbers = frame.select_dtypes("number").columns
    scores = frame.loc[list(students), numbers]
    groups = scores.groupby([frame[name] for name in by])
    is_best = (scores == groups.transform("max")) & (groups.transform("count") > 1)
    return is_best.reindex(frame.index, fill_value=False)


def _scores_table(findings: Findings) -> Table:
    frame = findings.scores
    note = (
        f"{findings.label} ×100: mean over the sampling seeds ± its standard error. Bold: the best student of a size."
    )
    if MEAN in frame:
        note += f" {MEAN.capitalize()}: over {', '.join(findings.shared_benchmarks)}."
    best = best_students(frame, students=[model.is_student for model in findings.models], by=["parameters"])
    return Table(key="scores", title=findings.label, frame=frame, note=note, best=best)


def _bars(findings: Findings) -> Picture:
    shared = findings.shared_benchmarks
    column = MEAN if MEAN in findings.scores else shared[0]
    frame = findings.scores.dropna(subset=column)

    def paint(axes: Axes) -> None:
        colors = [findings.looks[name]["color"] for name in frame["model"]]
        bars = axes.barh("model", column, xerr=frame[column + ERROR].fillna(0), data=frame, color=colors, capsize=2)
        axes.bar_label(bars, fmt="%.1f", padding=4)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.margins(x=0.14)
        axes.set_xlabel(findings.label)

    over = f"mean over {', '.join(shared)}" if column == MEAN else column
    description = f"{findings.label} of each model, {over}; bars: standard error over the seeds."
    return draw("scores", paint, description=description, height=0.9 + _BAR * len(frame))


def _differences_table(findings: Findings, base: Model) -> Table:
    """The base model's score minus that of each other model."""
    others = [model for model in findings.models if model is not base]
    names = [name for name in base.benchmarks if findings.score(base, name)]
    columns = [column for name in names for column in (name, name + LOW, name + HIGH, f"p, {name}")]
    rows = [[value for name in names for value in _difference(findings, base, other, name)] for other in others]
    frame = pd.DataFrame(rows, columns=columns, dtype=float)
    frame.insert(0, f"{base.name} minus", [other.name for other in others])
    return Table(
        key="differences",
        title=f"Paired differences between {base.name} and the other models",
        frame=frame,
        digits={f"p, {name}": 4 for name in names},
        note=(
            f"Difference in {findings.label} ×100 with its 95 % interval and p, by a paired bootstrap over the"
            " rows, each with its mean over the seeds. Other rows would change it within the interval;"
            " another training may change it more. –: the two models were evaluated on different rows or seeds."
        ),
    )


def _difference(findings: Findings, base: Model, other: Model, benchmark: str) -> Sequence[float | None]:
    """The difference, the ends of its interval, and p."""
    if not findings.score(other, benchmark):
        return [None] * 4
    ours, theirs = (
        read_row_scores(model.directory(benchmark), benchmark=benchmark, metric=findings.metric)
        for model in (base, other)
    )
    if (ours.seeds, ours.rows) != (theirs.seeds, theirs.rows) or len(ours.rows) < 2:
        return [None] * 4
    found = paired_difference(ours.values, theirs.values, metric=findings.metric)
    return found.mean, found.low, found.high, found.p_value


def _details_table(findings: Findings) -> Table:
    evaluated = [(name, model) for name in findings.benchmarks for model in findings.models if name in model.benchmarks]
    entries = [{"benchmark": name, "model": model.name, **model.benchmarks[name]} for name, model in evaluated]
    for entry in entries:
        entry["seeds"] = max(len(metric["per_seed"]) for metric in metrics_of(entry).values())
    metrics = dict.fromkeys(name for entry in entries for name in metrics_of(entry))
    columns = {"benchmark": "benchmark", "model": "model"}
    for name in metrics:
        columns |= {f"{name}.mean": name, f"{name}.standard_error": name + ERROR}
        columns |= {f"{name}.standard_error_over_rows": f"{name}, error over rows"}
    columns |= {"num_samples": "rows", "seeds": "seeds", "truncated_share": "truncated", "empty_share": "empty"}
    columns |= {"response_tokens.mean": "tokens", "decoding.max_new_tokens": "at most", "decoding.greedy": "greedy"}
    columns |= {"decoding.temperature": "temperature"}
    frame = pd.json_normalize(entries).rename(columns=columns).reindex(columns=list(columns.values()))
    return Table(
        key="evaluations",
        title="All evaluations",
        frame=frame.astype({"greedy": str} | {name + ERROR: float for name in metrics}),
        digits={"rows": 0, "seeds": 0, "truncated": 3, "empty": 3, "at most": 0},
        note=(
            "±: standard error over the sampling seeds. Error over rows: standard error over the rows. Truncated,"
            " empty: shares of the responses without an end-of-sequence token within the limit, and without text."
            " Tokens: mean length of the responses."
        ),
    )
