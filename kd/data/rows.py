"""Rows of a file or of a hub data set, each with its location."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd.errors import UserError

_FILE_KINDS = ".jsonl, .json or .parquet"
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
        if name not in self.fields:
            keys = ", ".join(sorted(self.fields)) or "none"
            raise UserError(f"{self.source}: expected the key `{name}`, found the keys {keys}; add it or drop the row")
        return self._check(self.fields[name], name=name, blank=blank)

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
            raise UserError(f"{self.source}: expected `{name}` to be true or false, found {_kind(value)}; correct it")
        return default if value is None else value

    def _check(self, value: object, *, name: str, blank: Literal["refused", "allowed"] = "refused") -> str:
        if not isinstance(value, str):
            raise UserError(f"{self.source}: expected `{name}` to be text, found {_kind(value)}; correct the row")
        if blank == "refused" and not value.strip():
            raise UserError(f"{self.source}: `{name}` is empty; fill it in or remove the row")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            # JSON can escape half of a surrogate pair, which no tokenizer can read.
            raise UserError(f"{self.source}: `{name}` holds half of a surrogate pair; remove that character") from None
        return value


def read_rows(source: str) -> list[Row]:
    """Read every row of a .jsonl, .json or .parquet file, or of a hub data set `org/name[:split]`.

    Raises:
        UserError: unreadable source, broken content, or no row at all.
    """
    path = Path(source)
    match path.suffix:
        case ".jsonl":
            return read_json_lines(path)
        case ".json":
            return _make_rows(enumerate(_read_json_list(path), start=1), source=source)
        case ".parquet":
            return _make_rows(enumerate(_read_parquet(path), start=1), source=source)
        case _ if path.exists() or not _HUB_NAME.fullmatch(source):
            raise UserError(f"{source}: expected a {_FILE_KINDS} file or a hub name org/name[:split]; give one of them")
    name, _, split = source.partition(":")
    split = split or "train"
    return _make_rows(enumerate(_read_hub(name, split=split), start=1), source=f"{name}:{split}")


def read_json_lines(path: Path) -> list[Row]:
    """Read one JSON object per line, whatever the file is called; blank lines are skipped.

    Raises:
        UserError: unreadable file, a line that is not a JSON object, or no row at all.
    """
    # Lines are split as bytes, so that a line which is not valid UTF-8 can be named.
    lines = enumerate(_read_bytes(path).split(b"\n"), start=1)
    values = ((number, _parse(line, path=path, line=number)) for number, line in lines if line.strip())
    return _make_rows(values, source=str(path))


def one_line(error: Exception) -> str:
    """The message of `error` without line breaks."""
    return " ".join(str(error).split())


def _make_rows(values: Iterable[tuple[int, object]], *, source: str) -> list[Row]:
    """Rows of (line or row number, record)."""
    rows = []
    for number, value in values:
        if not isinstance(value, dict):
            raise UserError(
                f"{source}:{number}: expected a JSON object, found {_kind(value)}; write {{...}} with a key per field"
            )
        rows.append(Row(source=f"{source}:{number}", fields=value))
    if not rows:
        raise UserError(f"{source}: expected at least one row, found none; give a source with rows")
    return rows


def _read_json_list(path: Path) -> list[object]:
    content = _read_bytes(path)
    values = _parse(content, path=path) if content.strip() else []
    if not isinstance(values, list):
        raise UserError(
            f"{path}: expected a JSON list of objects, found {_kind(values)}; name the file .jsonl if each line is one"
        )
    return values


def _read_parquet(path: Path) -> Iterable[object]:
    import pyarrow
    import pyarrow.parquet

    content = pyarrow.BufferReader(_read_bytes(path))
    try:
        rows: list[object] = pyarrow.parquet.read_table(content).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a valid parquet file ({one_line(error)}); write it again") from None
    return rows


def _read_hub(name: str, *, split: str) -> Iterable[object]:
    import datasets

    try:
        dataset: Iterable[object] = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{name}:{split}: no such file, and split {split!r} of {name!r} could not be read from the hub"
            f" ({one_line(error)}); check name and network, or give a {_FILE_KINDS} file"
        ) from None
    return dataset


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a {_FILE_KINDS} file") from None


def _parse(content: bytes, *, path: Path, line: int | None = None) -> object:
    """The JSON value of `content`, which is a whole file or its line number `line`."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        location = f"{path}:{line}" if line else path
        raise UserError(f"{location}: not valid UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{line or error.lineno}: not valid JSON ({error.msg}, column {error.colno}); correct that line"
        ) from None


def _kind(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "text", type(None): "null", bool: "a truth value"}
    return names.get(type(value), "a number")
