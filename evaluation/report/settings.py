"""What the runs were told differently."""

from collections.abc import Iterator
from typing import Any

from evaluation.report.findings import Findings, Section
from evaluation.report.tables import Cell, RowGroup, Table, text
from evaluation.report.training import Flat


def settings_section(findings: Findings) -> Section:
    """Fields of the configurations, and versions and devices, that differ; empty with fewer than two runs."""
    runs = findings.outputs.trainings
    groups = [
        RowGroup(title=title, rows=tuple(_rows([getattr(run, kind) for run in runs])))
        for title, kind in (("Configuration", "settings"), ("Where it ran", "conditions"))
    ]
    table = Table(
        key="settings",
        title="Fields that differ",
        columns=("field", *(run.name for run in runs)),
        groups=tuple(group for group in groups if group.rows),
        note="Fields that are equal in all runs are left out, and run.dir.",
    )
    return Section(key="settings", title="How the configurations differ", tables=(table,) if table.groups else ())


def _rows(values: list[Flat]) -> Iterator[tuple[Cell, ...]]:
    for name in dict.fromkeys(name for of_run in values for name in of_run):
        shown = [_shown(of_run.get(name)) for of_run in values]
        if len(set(shown)) > 1 and name != "run.dir":
            yield text(name), *map(text, shown)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
