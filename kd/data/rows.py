"""Rows of a file or of a hub data set, each with its location."""

import glob
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd.data.files import (
    FILE_KINDS,
    Records,
    file_kind,
    number_rows,
    one_line,
    read_json_lines_records,
    read_records,
    read_saved,
)
from kd.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record; `source` is "path:line", or "path:row" if a format has no lines, counted from 1.

    Methods raise a UserError with the source if a field is not what they describe, or not valid Unicode.
    """

    source: str
    fields: Mapping[str, object]

    def text(self, name: str, *, blank: Literal["refused", "allowed"] = "refused") -> str:
        """The text of a field that every row must have."""
        self.require(name)
        return self._check(self.fields[name], name=name, blank=blank)

    def require(self, name: str) -> None:
        """Check that the row has a field."""
        if name not in self.fields:
            keys = ", ".join(sorted(self.fields)) or "none"
            raise UserError(f"{self.source}: expected the key `{name}`, found the keys {keys}; add it or drop the row")

    def text_or_empty(self, name: str) -> str:
        """The text of a field that may be missing, null or blank."""
        value = self.fields.get(name)
        return "" if value is None else self._check(value, name=name, blank="allowed")

    def texts(self, name: str) -> tuple[str, ...]:
        """The texts of a field that holds one or several, none of them blank; no text if it is missing or null."""
        # A row of a table cannot leave out a column: null means that it has none.
        value = self.fields.get(name)
        if value is None:
            return ()
        if value == []:
            raise UserError(f"{self.source}: `{name}` is an empty list; fill it in, or remove the key or the row")
        return tuple(self._check(text, name=name) for text in (value if isinstance(value, list) else [value]))

    def truth(self, name: str, *, default: bool) -> bool:
        """The truth value of a field; `default` if it is missing or null."""
        value = self.fields.get(name)
        if not isinstance(value, bool | None):
            raise UserError(f"{self.source}: expected `{name}` to be true or false, found {kind_of(value)}; correct it")
        return default if value is None else value

    def _check(self, value: object, *, name: str, blank: Literal["refused", "allowed"] = "refused") -> str:
        if not isinstance(value, str):
            raise UserError(f"{self.source}: expected `{name}` to be text, found {kind_of(value)}; correct the row")
        if blank == "refused" and not value.strip():
            raise UserError(f"{self.source}: `{name}` is empty; fill it in or remove the row")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            # JSON can escape half of a surrogate pair, which no tokenizer can read.
            raise UserError(f"{self.source}: `{name}` holds half of a surrogate pair; remove that character") from None
        return value


def read_rows(source: str) -> list[Row]:
    """Read all rows of a file, of a directory or pattern of files, of a saved data set, or of a hub data set.

    Files end in .jsonl, .json, .csv or .parquet, in any case, the first three also with .gz behind it. A directory is
    what `datasets.save_to_disk` wrote, or has files of one kind. A hub data set is `org/name[:split]`.

    Raises:
        UserError: unreadable source, broken content, or no row at all.
    """
    path = Path(source)
    # Unlike Path's own methods, these have no error for names that the system refuses.
    exists = os.path.exists(source)
    if exists and path.is_dir():
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
            return _make_rows(read_saved(path), source=source)
        return _read_shards([found for found in _list_directory(path) if file_kind(found)], source=source)
    if not exists and glob.has_magic(source) and not _HUB_NAME.fullmatch(source):
        return _read_shards([Path(name) for name in glob.glob(source, recursive=True)], source=source)
    if file_kind(path) is not None:
        return _make_rows(read_records(path), source=source)
    if exists or not _HUB_NAME.fullmatch(source):
        raise UserError(
            f"{source or repr(source)}: expected a {FILE_KINDS} file, a directory of them, or a hub name"
            " org/name[:split]; give one of them"
        )
    name, _, split = source.partition(":")
    split = split or "train"
    source = f"{name}:{split}"
    return _make_rows(number_rows(_read_hub(name, split=split), source=source), source=source)


def read_json_lines(path: Path) -> list[Row]:
    """Read one JSON object per line, whatever the file is called; blank lines are skipped.

    Raises:
        UserError: unreadable file, a line that is not a JSON object, or no row at all.
    """
    return _make_rows(read_json_lines_records(path), source=str(path))


def _list_directory(path: Path) -> list[Path]:
    """The files in it, without hidden ones, which editors and systems leave behind."""
    try:
        return [found for found in path.iterdir() if not found.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a directory that can be read") from None


def _read_shards(candidates: list[Path], *, source: str) -> list[Row]:
    """The rows of all files, one after the other."""
    paths = sorted(path for path in candidates if not path.is_dir())
    kinds = {path: file_kind(path) for path in paths}
    if not paths or None in kinds.values() or len(set(kinds.values())) > 1:
        found = ", ".join(sorted(str(kind or path.name) for path, kind in kinds.items())[:5]) or "none"
        raise UserError(
            f"{source}: expected files of one kind, {FILE_KINDS}, found {found}; name the ones that you want"
        )
    return [row for path in paths for row in _make_rows(read_records(path), source=str(path))]


def _make_rows(values: Records, *, source: str) -> list[Row]:
    """Rows of (line or row number, record)."""
    rows = []
    for number, value in values:
        if not isinstance(value, dict):
            raise UserError(
                f"{source}:{number}: expected a JSON object, found {kind_of(value)}; write {{...}} with a key per field"
            )
        rows.append(Row(source=f"{source}:{number}", fields=value))
    if not rows:
        raise UserError(f"{source}: expected at least one row, found none; give a source with rows")
    return rows


def _read_hub(name: str, *, split: str) -> Iterable[object]:
    import datasets

    try:
        dataset: Iterable[object] = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{name}:{split}: no such file, and split {split!r} of {name!r} could not be read from the hub"
            f" ({one_line(error)}); check name and network, or give a {FILE_KINDS} file"
        ) from None
    return dataset


def kind_of(value: object) -> str:
    """What a value is, as a message names it."""
    names = {list: "a list", dict: "an object", str: "text", type(None): "null", bool: "a truth value", bytes: "bytes"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
