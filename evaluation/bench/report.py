"""Results of the main command: cost.json, the table, and the picture of the step by phases."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from evaluation.bench.peer_trl import PeerCost
from evaluation.bench.results import GIB, describe_briefly, print_results
from evaluation.bench.steps import COLUMNS, StepCost
from evaluation.pictures import COLORS, load_pyplot, save
from evaluation.results import write_json
from kd.distributed import World
from kd.zero.recorder import PHASES


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Everything that was measured in one run."""

    preset_name: str
    global_batch: int
    overrides: list[str]
    machine: dict[str, Any]
    costs: list[StepCost]
    peer: PeerCost | None = None

    @property
    def reference(self) -> tuple[str, float]:
        """Name and step seconds of what the cases are compared with: the peer, or else the first case."""
        if self.peer is not None:
            return f"{self.peer.name} {self.peer.version}", self.peer.step_seconds
        return self.costs[0].case.name, self.costs[0].step_seconds


def write_report(report: CostReport, *, out: Path, world: World) -> None:
    """Write cost.json, cost.png and cost.svg on the main rank.

    Raises:
        UserError: on every rank alike, if a file cannot be written.
    """
    values = asdict(report)
    reference, seconds = report.reference
    for cost, entry in zip(report.costs, values["costs"], strict=True):
        entry |= {"name": cost.case.name, "relative_to": reference, "relative": cost.step_seconds / seconds}
    with world.agreed():
        if world.is_main:
            write_json(out / "cost.json", values)
            _draw(report, out=out)


def print_report(report: CostReport, *, out: Path) -> None:
    """Print the table, a column for each case."""
    title = f"preset {report.preset_name}: one step of {report.global_batch} sequences, medians"
    table = Table("", title=escape(" ".join([title, *report.overrides])))
    for cost in report.costs:
        table.add_column(cost.case.name.replace(" ", "\n"), justify="right")
    if report.peer is not None:
        table.add_column(f"{report.peer.name}\n{report.peer.version}", justify="right")
    for label, value in _rows(report):
        peer = [f"{report.peer.step_seconds:.2f}"] if report.peer is not None and label == "step (s)" else []
        table.add_row(label, *map(value, report.costs), *peer)
    print_results(table, machine=report.machine, out=out)


def _rows(report: CostReport) -> list[tuple[str, Callable[[StepCost], str]]]:
    def seconds(name: str) -> Callable[[StepCost], str]:
        return lambda cost: f"{cost.seconds[name]:.2f}" if cost.seconds[name] else "–"

    def rate(name: str) -> Callable[[StepCost], str]:
        return lambda cost: f"{cost.num_flops[name] / cost.seconds[name] / 1e9:,.1f}" if cost.num_flops[name] else "–"

    reference, reference_seconds = report.reference
    return [
        ("step (s)", lambda cost: f"{cost.step_seconds:.2f}"),
        ("  fastest – slowest", lambda cost: " – ".join(f"{pick(cost.all_step_seconds):.2f}" for pick in (min, max))),
        *((f"  {name}", seconds(name)) for name in COLUMNS),
        (f"step ÷ {reference}", lambda cost: f"{cost.step_seconds / reference_seconds:.2f}"),
        ("tokens/s", lambda cost: f"{cost.tokens_per_second:.0f}"),
        ("peak memory (GiB)", lambda cost: f"{cost.peak.allocated / GIB:.2f}"),
        ("  reserved", lambda cost: "–" if cost.peak.reserved is None else f"{cost.peak.reserved / GIB:.2f}"),
        ("moved (GB)", lambda cost: f"{sum(cost.num_bytes.values()) / 1e9:.2f}"),
        ("GFLOP/s", lambda cost: f"{cost.num_flops['total'] / cost.step_seconds / 1e9:,.1f}"),
        *((f"  {name}", rate(name)) for name in PHASES),
    ]


def _draw(report: CostReport, *, out: Path) -> None:
    """Draw one bar for each case, stacked by phase, and the peer's."""
    plt = load_pyplot()
    reference, reference_seconds = report.reference
    bars = {cost.case.name: cost.seconds for cost in report.costs}
    if report.peer is not None:
        bars[reference] = {reference: reference_seconds}
    frame = pd.DataFrame.from_dict(bars, orient="index")
    figure, axes = plt.subplots(figsize=(9.5, 2.4 + 0.6 * len(bars)), layout="constrained")
    frame.loc[:, frame.any()].plot.barh(
        stacked=True, ax=axes, color=dict(zip(frame, COLORS, strict=False)), legend=False
    )
    for row, end in enumerate(frame.sum(axis=1)):
        axes.text(end, row, f" {end:.2f} s, {end / reference_seconds:.2f} × {reference}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * frame.sum(axis=1).max())
    axes.set_xlabel("seconds of one step (medians)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(COLORS), frameon=False)
    figure.supxlabel(f"preset {report.preset_name}; {describe_briefly(report.machine)}", fontsize=7, color="#666666")
    save(figure, out / "cost")
    plt.close(figure)
