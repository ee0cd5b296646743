"""The table on the terminal, and cost.json."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from evaluation.bench.machine import counted
from evaluation.bench.outputs import print_files, write_json
from evaluation.bench.peer_trl import PeerCost
from evaluation.bench.presets import Preset
from evaluation.bench.rates import Rates
from evaluation.bench.summary import COLUMNS, StepCost
from evaluation.terminal import results_console

GIB = 2**30
LEAST_GATHERING_SECONDS = 1e-3
"""Less is noise: nothing is divided by it."""


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """Everything that was measured in one run."""

    preset_name: str
    preset: Preset
    machine: dict[str, Any]
    rates: Rates
    costs: list[StepCost]
    peer: PeerCost | None

    def sharding(self) -> list[dict[str, Any]]:
        """What sharding adds to the step of each method that was measured both ways, and what gathering alone would.

        `extra_gathering_seconds`: bytes that the sharded step gathers beyond the unsharded one, at the measured rate.
        """
        rate = self.rates.gather_bytes
        unsharded = {cost.case.method: cost for cost in self.costs if cost.case.zero_stage == 0}
        found = []
        for cost in self.costs:
            whole = unsharded.get(cost.case.method)
            if cost.case.zero_stage and whole is not None:
                extra = cost.step_seconds - whole.step_seconds
                num_bytes = cost.num_bytes["gathered"] - whole.num_bytes["gathered"]
                # A single rank gathers nothing.
                gathering = 0.0 if rate is None else num_bytes / rate
                ratio = extra / gathering if gathering >= LEAST_GATHERING_SECONDS else None
                found.append(
                    {
                        "case": cost.case.name,
                        "extra_seconds": extra,
                        "extra_gathering_seconds": gathering,
                        "ratio": ratio,
                    }
                )
        return found


def write_numbers(report: CostReport, *, out: Path) -> None:
    """Write cost.json."""
    values = asdict(report)
    for cost, entry in zip(report.costs, values["costs"], strict=True):
        entry |= {"name": cost.case.name, "over_floor": cost.step_seconds / cost.floor.step}
        entry["over_floor_by_shape"] = cost.step_seconds / cost.floor.step_by_shape
        if report.peer is not None:
            entry["over_peer"] = cost.step_seconds / report.peer.step_seconds
    values["rates"] |= {"operations": report.rates.operations, "gather_bytes": report.rates.gather_bytes}
    if report.peer is not None:
        values["peer"]["step_seconds"] = report.peer.step_seconds
    write_json(out / "cost.json", values | {"sharding": report.sharding()})


def print_report(report: CostReport, *, out: Path) -> None:
    """Show the table and where the files are."""
    console = results_console()
    console.print(_title(report), soft_wrap=True)
    console.print(_table(report))
    rates = report.rates
    gather = "" if rates.gather_bytes is None else f", gathers {rates.gather_bytes / 1e9:.2f} GB/s"
    console.print(
        f"measured per rank, all at once: products {rates.operations / 1e9:,.0f} GFLOP/s{_products(report)}, memory"
        f" {rates.memory_bytes / 1e9:.1f} GB/s{gather}",
        soft_wrap=True,
    )
    for entry in report.sharding():
        ratio = "" if entry["ratio"] is None else f": {entry['ratio']:.3g} ×"
        console.print(
            f"{entry['case']}: {entry['extra_seconds']:.2f} s more than unsharded; gathering its bytes takes"
            f" {entry['extra_gathering_seconds']:.2f} s at the measured rate{ratio}",
            soft_wrap=True,
        )
    print_files(out, console=console)


def _products(report: CostReport) -> str:
    return "" if report.machine["gpus"] else f" ({report.machine['products']})"


def _title(report: CostReport) -> str:
    preset, num_ranks = report.preset, report.machine["num_ranks"]
    sequences = preset.micro_batch * preset.micro_batches * num_ranks
    title = f"preset {report.preset_name}: one step of {sequences} sequences on {counted(num_ranks, 'rank')}, medians"
    if preset.num_ranks in (None, num_ranks):
        return title
    return f"{title} (its batch was chosen for {counted(preset.num_ranks, 'rank')})"


def _table(report: CostReport) -> Table:
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
    return table


def _rows(report: CostReport) -> Sequence[tuple[str, Callable[[StepCost], str]]]:
    def seconds(name: str) -> Callable[[StepCost], str]:
        return lambda cost: f"{cost.seconds[name]:.2f}" if cost.seconds[name] >= 0.005 else "–"

    rows: list[tuple[str, Callable[[StepCost], str]]] = [("step (s)", lambda cost: f"{cost.step_seconds:.2f}")]
    rows += [(f"  {name}", seconds(name)) for name in COLUMNS]
    rows += [
        ("floor (s)", lambda cost: f"{cost.floor.step:.2f}"),
        ("  by shape (s)", lambda cost: f"{cost.floor.step_by_shape:.2f}"),
        ("step / floor", lambda cost: f"{cost.step_seconds / cost.floor.step:.2f}"),
        ("  by shape", lambda cost: f"{cost.step_seconds / cost.floor.step_by_shape:.2f}"),
    ]
    if report.peer is not None:
        peer = report.peer.step_seconds
        rows.append((f"step / {report.peer.name}", lambda cost: f"{cost.step_seconds / peer:.2f}"))
    rows += [
        ("tokens/s", lambda cost: f"{cost.tokens_per_second:.0f}"),
        ("peak (GiB)", lambda cost: f"{cost.peak.allocated / GIB:.2f}"),
        ("reserved (GiB)", lambda cost: "–" if cost.peak.reserved is None else f"{cost.peak.reserved / GIB:.2f}"),
        ("moved (GB)", lambda cost: f"{sum(cost.num_bytes.values()) / 1e9:.2f}"),
        ("  at rate (s)", lambda cost: f"{cost.moving_seconds:.2f}"),
    ]
    return rows
