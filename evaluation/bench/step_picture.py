"""The picture of steps: stacked bars beside their floor. Needs matplotlib."""

from pathlib import Path
from typing import Any

from evaluation.bench.pictures import COLOURS, INK, finish
from evaluation.bench.report import CostReport
from evaluation.bench.summary import COLUMNS

PEER_COLOUR = "#8A8A8A"


def draw_steps(report: CostReport, *, out: Path) -> None:
    """Write cost.png and cost.svg: a stacked bar for each case, its floor as a line across, the peer's bar."""
    # Imported here: only --help works without matplotlib.
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    several_stages = len({(cost.case.zero_stage, cost.case.gather) for cost in report.costs}) > 1
    names = [cost.case.name if several_stages else cost.case.method for cost in report.costs]
    bars = len(names) + (report.peer is not None)
    figure = Figure(figsize=(9.5, 1.6 + 0.62 * bars), layout="constrained")
    axes = figure.subplots()
    longest = max([cost.step_seconds for cost in report.costs] + ([report.peer.step_seconds] if report.peer else []))
    for place, cost in enumerate(report.costs):
        start = 0.0
        for column in COLUMNS:
            axes.barh(place, cost.seconds[column], left=start, height=0.62, color=COLOURS[column])
            start += cost.seconds[column]
        floor = cost.floor.step
        axes.vlines(floor, place - 0.42, place + 0.42, color=INK, linewidth=2.2)
        _annotate(axes, place, cost.step_seconds, _verdict(report, cost.step_seconds, floor), longest)
    if report.peer is not None:
        names.append(f"{report.peer.name} {report.peer.version}")
        axes.barh(bars - 1, report.peer.step_seconds, height=0.62, color=PEER_COLOUR)
        _annotate(axes, bars - 1, report.peer.step_seconds, f"{report.peer.step_seconds:.2f} s", longest)
    axes.set_yticks(range(bars), names)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.36)
    axes.set_xlabel("seconds of one step (medians)")
    shown = [column for column in COLUMNS if any(cost.seconds[column] > 0.002 * longest for cost in report.costs)]
    handles: list[Any] = [Patch(color=COLOURS[column]) for column in shown]
    handles.append(Line2D([], [], color=INK, marker="|", markersize=14, markeredgewidth=2.2, linestyle=""))
    figure.legend(
        handles, [*shown, "arithmetic floor"], loc="outside upper center", ncols=len(handles), frameon=False,
        handlelength=1.1, columnspacing=1.2,
    )  # fmt: skip
    finish(figure, [axes], machine=report.machine, note=f"preset {report.preset_name}", out=out, name="cost")


def _verdict(report: CostReport, seconds: float, floor: float) -> str:
    text = f"{seconds:.2f} s, {seconds / floor:.2f} × floor"
    return text if report.peer is None else f"{text}, {seconds / report.peer.step_seconds:.2f} × {report.peer.name}"


def _annotate(axes: Any, place: int, end: float, text: str, longest: float) -> None:
    axes.text(end + 0.012 * longest, place, text, va="center", color=INK, fontsize=9)
