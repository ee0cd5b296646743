"""Pictures of costs in one style, and panels of lines. Needs matplotlib (extra `bench` or `report`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.bench.machine import describe_in_short
from evaluation.pictures import save

# Told apart also without colours of full sight: Okabe and Ito's palette.
COLOURS = {
    "generation": "#56B4E9",
    "teacher": "#E69F00",
    "prompt": "#CC79A7",
    "student": "#009E73",
    "optimizer": "#0072B2",
    "communication": "#D55E00",
    "other": "#DDDDDD",
}
INK = "#222222"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a panel."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = INK
    dashed: bool = False


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    legend: bool = False
    """Of its own; the lines of the others are told in the cell after the last panel."""


def draw_panels(panels: Sequence[Panel], *, machine: dict[str, Any], note: str, out: Path, name: str) -> None:
    """Write `name`.png and `name`.svg with the panels in rows of three, and a legend after the last."""
    columns = min(3, len(panels) + 1)
    rows = -(-(len(panels) + 1) // columns)
    # Imported here: help and the lists of options should not need matplotlib.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.9 * columns, 3.1 * rows + 0.4), layout="constrained")
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, panel in zip(all_axes, panels, strict=False):
        for line in panel.lines:
            style = "--" if line.dashed else "-"
            width, marker = (1.2, None) if line.dashed else (1.8, "o")
            axes.plot(
                line.x, line.y, style, marker=marker, markersize=4, linewidth=width, color=line.colour, label=line.label
            )
        axes.set_title(panel.title, fontsize=10.5)
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        axes.set_xticks(panel.lines[0].x)
        if panel.legend:
            axes.legend(frameon=False, fontsize=9)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    handles, labels = all_axes[len(panels) - 1].get_legend_handles_labels()
    all_axes[len(panels)].legend(handles, labels, frameon=False, loc="center left")
    finish(figure, all_axes[: len(panels)], machine=machine, note=note, out=out, name=name)


def finish(figure: Any, all_axes: Sequence[Any], *, machine: dict[str, Any], note: str, out: Path, name: str) -> None:
    """Write the figure in both formats, with a line about the machine below it."""
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
    figure.supxlabel(f"{note}; {describe_in_short(machine)}", fontsize=7.5, color="#666666")
    save(figure, out / name)
