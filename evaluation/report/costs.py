"""Table 3: memory and time of trainings, and of steps that evaluation.bench measured."""

from collections.abc import Iterator, Mapping, Sequence

from evaluation.report.findings import Findings, Section
from evaluation.report.formats import CostResults
from evaluation.report.outputs import Output
from evaluation.report.tables import Cell, RowGroup, Table, text
from evaluation.report.training import METHODS, TrainingRun

_GB = 1e9
_REFERENCE = "PromptKD"
"""Times are compared with this method's."""


def costs_section(findings: Findings) -> Section:
    """Table 3, from trainings and from evaluation.bench; empty without either."""
    outputs = findings.outputs
    groups = [RowGroup(title=_cost_title(output), rows=tuple(_cost_rows(output.results))) for output in outputs.costs]
    runs = [run for run in outputs.trainings if run.records]
    if runs:
        groups.insert(0, RowGroup(title="Trainings of this report", rows=tuple(_training_rows(runs))))
    section = Section(key="costs", title="Costs")
    if not groups:
        return section
    paper = findings.paper.table3
    hours = {method: cost.hours for method, cost in paper.methods.items()}
    rows = [
        (
            text(method), text(""), Cell(value=cost.allocated_gb, digits=2), Cell(value=cost.cached_gb, digits=2),
            Cell(value=None), Cell(value=cost.hours, digits=2), _relative(hours, method),
        )
        for method, cost in paper.methods.items()
    ]  # fmt: skip
    table = Table(
        key="table3",
        title="Table 3: costs",
        columns=("method", "run", "MA (GB)", "CA (GB)", "step (s)", "time (hour)", f"time ÷ {_REFERENCE}’s"),
        groups=(*groups, RowGroup(title=f"The paper: {paper.setting}", rows=tuple(rows))),
        note=(
            "MA: most memory allocated by one rank, CA: most held by its allocator (GB = 10⁹ bytes); on a CPU, MA is"
            " resident memory, the libraries’ code included, and there is no CA. Time of the optimizer steps. The last"
            f" column compares whole trainings, or steps where only those were measured. {paper.remark}"
        ),
    )
    return Section(key=section.key, title=section.title, tables=(table,))


def _cost_title(output: Output[CostResults]) -> str:
    machine = output.results.machine
    device = machine.gpus[0] if machine.gpus else machine.cpu
    return f"Steps of preset {output.results.preset_name} on {machine.num_ranks} ranks, {device}"


def _cost_rows(results: CostResults) -> Iterator[tuple[Cell, ...]]:
    shardings = {entry.case.sharding for entry in results.costs}
    for entry in results.costs:
        sharding = entry.case.sharding
        seconds = {
            METHODS.get(other.case.method, other.case.method): other.step_seconds
            for other in results.costs
            if other.case.sharding == sharding
        }
        method = METHODS.get(entry.case.method, entry.case.method)
        reserved = entry.peak.reserved
        yield (
            text(method),
            text(sharding if len(shardings) > 1 or entry.case.gather != "auto" else ""),
            Cell(value=entry.peak.allocated / _GB, digits=2),
            Cell(value=None if reserved is None else reserved / _GB, digits=2),
            Cell(value=entry.step_seconds, digits=3),
            Cell(value=None),
            _relative(seconds, method),
        )


def _training_rows(runs: Sequence[TrainingRun]) -> Iterator[tuple[Cell, ...]]:
    # Several runs of the method leave open which one to compare with.
    references = [run for run in runs if run.method == _REFERENCE]
    for run in runs:
        seconds = {one.name: one.seconds or 0.0 for one in runs}
        if len(references) == 1:
            seconds[_REFERENCE] = references[0].seconds or 0.0
        yield (
            text(run.method),
            text(run.name),
            Cell(value=(run.peak_bytes or 0) / _GB, digits=2),
            Cell(value=None),
            Cell(value=seconds[run.name] / run.num_steps, digits=3),
            Cell(value=seconds[run.name] / 3600, digits=2 if seconds[run.name] >= 3600 else 4),
            _relative(seconds, run.name),
        )


def _relative(seconds: Mapping[str, float], name: str) -> Cell:
    reference = seconds.get(_REFERENCE)
    return Cell(value=seconds[name] / reference if reference else None, digits=2)
