"""Results of the main command: cost.json, the table on the terminal, and the picture."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from evaluation.bench.machine import describe_briefly
from evaluation.bench.peer_trl import PeerCost
from evaluation.bench.steps import COLUMNS, StepCost
from evaluation.pictures import save
from evaluation.results import write_atomically
from evaluation.terminal import results_console
from kd.errors import UserError
from kd.zero.recorder import PHASES

GIB = 2**30
# Okabe and Ito's palette, which colour-blind readers can tell apart.
_COLOURS = ("#56B4E9", "#E69F00", "#CC79A7", "#009E73", "#0072B2", "#DDDDDD")
_PEER_COLOUR = "#8A8A8A"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method with one way to partition its models."""

    method: str
    zero_stage: int
    gather: str
    """As `engine.gather`."""

    @property
    def name(self) -> str:
        gather = "" if self.gather == "auto" else f" gather={self.gather}"
        return f"{self.method} ZeRO-{self.zero_stage}{gather}"


@dataclass(frozen=True, kw_only=True)
class CaseCost(StepCost):
    """Cost of one case."""

    case: Case


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Everything that was measured in one run."""

    preset_name: str
    global_batch: int
    overrides: tuple[str, ...]
    machine: dict[str, Any]
    costs: list[CaseCost]
    peer: PeerCost | None

    @property
    def reference(self) -> tuple[str, float]:
        """Name and step seconds of what the others are compared with: the peer, or else the first case."""
        if self.peer is not None:
            return f"{self.peer.name} {self.peer.version}", self.peer.step_seconds
        return self.costs[0].case.name, self.costs[0].step_seconds


def make_out(out: Path) -> None:
    """Make the directory of results.

    Raises:
        UserError: it exists or cannot be made.
    """
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror}); choose a new directory") from None


def write_json(path: Path, values: object) -> None:
    """Write what a measurement found.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomically(path, json.dumps(values, indent=2) + "\n")


def write_report(report: CostReport, *, out: Path) -> None:
    """Write cost.json and draw cost.png and cost.svg.

    Raises:
        UserError: a file cannot be written.
    """
    values = asdict(report)
    reference, seconds = report.reference
    for cost, entry in zip(report.costs, values["costs"], strict=True):
        entry |= {"name": cost.case.name, "relative_to": reference, "relative": cost.step_seconds / seconds}
    write_json(out / "cost.json", values)
    _draw(report, out=out)


def print_report(report: CostReport, *, out: Path) -> None:
    """Print the table, and where the files are."""
    table = Table()
    table.add_column("")
    for cost in report.costs:
        table.add_column(cost.case.name.replace(" ", "\n"), justify="right")
    if report.peer is not None:
        table.add_column(f"{report.peer.name}\n{report.peer.version}", justify="right")
    for label, value in _rows(report):
        cells = [value(cost) for cost in report.costs]
        if report.peer is not None:
            cells.append(f"{report.peer.step_seconds:.2f}" if label == "step (s)" else "")
        table.add_row(label, *cells)
    console = results_console()
    title = f"preset {report.preset_name}: one step of {report.global_batch} sequences, medians"
    console.print("; ".join([title, *report.overrides]), markup=False, soft_wrap=True)
    console.print(table)
    console.print(describe_briefly(report.machine), markup=False, soft_wrap=True)
    console.print(f"{out}: cost.json, cost.png, cost.svg", markup=False, soft_wrap=True)


def _rows(report: CostReport) -> list[tuple[str, Callable[[CaseCost], str]]]:
    def seconds(name: str) -> Callable[[CaseCost], str]:
        return lambda cost: f"{cost.seconds[name]:.2f}" if cost.seconds[name] >= 0.005 else "–"

    def rate(name: str) -> Callable[[CaseCost], str]:
        return lambda cost: f"{cost.num_flops[name] / cost.seconds[name] / 1e9:,.1f}" if cost.num_flops[name] else "–"

    reference, reference_seconds = report.reference
    return [
        ("step (s)", lambda cost: f"{cost.step_seconds:.2f}"),
        ("  fastest – slowest", lambda cost: f"{cost.fastest_seconds:.2f} – {cost.slowest_seconds:.2f}"),
        *((f"  {name}", seconds(name)) for name in COLUMNS),
        (f"step ÷ {reference}", lambda cost: f"{cost.step_seconds / reference_seconds:.2f}"),
        ("tokens/s", lambda cost: f"{cost.tokens_per_second:.0f}"),
        ("peak of a rank (GiB)", lambda cost: f"{cost.peak.allocated / GIB:.2f}"),
        ("  reserved", lambda cost: "–" if cost.peak.reserved is None else f"{cost.peak.reserved / GIB:.2f}"),
        ("moved by a rank (GB)", lambda cost: f"{sum(cost.num_bytes.values()) / 1e9:.2f}"),
        ("GFLOP/s of a rank", lambda cost: f"{cost.num_flops['total'] / cost.step_seconds / 1e9:,.1f}"),
        *((f"  {name}", rate(name)) for name in PHASES if name != "optimizer"),
    ]


def _draw(report: CostReport, *, out: Path) -> None:
    """One bar for each case, stacked by phase, and the peer's."""
    # Imported here: --help works without matplotlib.
    from matplotlib.figure import Figure

    reference, reference_seconds = report.reference
    names = [cost.case.name for cost in report.costs]
    figure = Figure(figsize=(9.5, 1.8 + 0.6 * (len(names) + 1)), layout="constrained")
    axes = figure.subplots()
    ends = [0.0] * len(names)
    for column, colour in zip(COLUMNS, _COLOURS, strict=True):
        widths = [cost.seconds[column] for cost in report.costs]
        if max(widths) > 0.002 * reference_seconds:
            axes.barh(names, widths, left=ends, height=0.62, color=colour, label=column)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for row, cost in enumerate(report.costs):
        ratio = cost.step_seconds / reference_seconds
        axes.text(ends[row], row, f" {cost.step_seconds:.2f} s, {ratio:.2f} × {reference}", va="center", fontsize=9)
    if report.peer is not None:
        axes.barh([reference], [reference_seconds], height=0.62, color=_PEER_COLOUR)
        axes.text(reference_seconds, len(names), f" {reference_seconds:.2f} s", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(reference_seconds, *ends))
    axes.set_xlabel("seconds of one step (medians)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(COLUMNS), frameon=False)
    figure.supxlabel(f"preset {report.preset_name}; {describe_briefly(report.machine)}", fontsize=7, color="#666666")
    save(figure, out / "cost")
