"""Groups of rows: a column of the data that says which kind of request a row is."""

from dataclasses import dataclass
from pathlib import Path

from kd.config import DataConfig
from kd.data.rows import read_json_lines, read_rows
from kd.errors import UserError

MAX_GROUPS = 256
"""A column with more values is no kind of request; a soft prompt for each would see too few rows."""


@dataclass(frozen=True, kw_only=True)
class RowGroups:
    """Which group each row of a file is in."""

    names: tuple[str, ...]
    """Values of the column, sorted."""
    of_row: tuple[int, ...]
    """Index into `names` for each row id."""

    def __str__(self) -> str:
        counts = [self.of_row.count(index) for index in range(len(self.names))]
        return ", ".join(f"{name} ({count} rows)" for name, count in zip(self.names, counts, strict=True))


def read_groups(data: DataConfig) -> RowGroups | None:
    """The group of every training row; None without `data.group`.

    Raises:
        UserError: unreadable source, a row without text in the column, or more than `MAX_GROUPS` values.
    """
    if data.group is None:
        return None
    rows = read_rows(data.train) if data.train is not None else read_json_lines(Path(str(data.responses)))
    values = [row.text(data.group) for row in rows]
    names = tuple(sorted(set(values)))
    if len(names) > MAX_GROUPS:
        raise UserError(
            f"{data.train or data.responses}: data.group={data.group} has {len(names)} different values, expected at"
            f" most {MAX_GROUPS} kinds of request; choose a column with few"
        )
    place = {name: index for index, name in enumerate(names)}
    return RowGroups(names=names, of_row=tuple(place[value] for value in values))
