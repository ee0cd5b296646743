"""Which group a row is in."""

import json
from pathlib import Path

import pytest

from kd.config import DataConfig
from kd.data.groups import MAX_GROUPS, read_groups
from kd.errors import UserError


def write(directory: Path, rows: list[dict[str, object]]) -> Path:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_groups_are_the_columns_values_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, [{"kind": "sum"}, {"kind": "plural"}, {"kind": "sum"}])
    for data in (DataConfig(train=str(path), group="kind"), DataConfig(responses=str(path), group="kind")):
        groups = read_groups(data)
        assert groups is not None
        assert (groups.names, groups.of_row) == (("plural", "sum"), (1, 0, 1))
        assert str(groups) == "plural (1 rows), sum (2 rows)"


def test_without_a_column_there_are_no_groups(tmp_path: Path) -> None:
    assert read_groups(DataConfig(train=str(tmp_path / "is not read"))) is None


@pytest.mark.parametrize("row", [{}, {"kind": ""}, {"kind": 3}])
def test_a_row_without_a_group_is_named(tmp_path: Path, row: dict[str, object]) -> None:
    path = write(tmp_path, [{"kind": "sum"}, row])
    with pytest.raises(UserError, match=r"rows.jsonl:2: .*`kind`"):
        read_groups(DataConfig(train=str(path), group="kind"))


def test_a_column_of_free_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [{"kind": str(number)} for number in range(MAX_GROUPS + 1)])
    with pytest.raises(UserError, match="data.group=kind has 257 different values, expected at most 256"):
        read_groups(DataConfig(train=str(path), group="kind"))
