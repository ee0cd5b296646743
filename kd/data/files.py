"""Values of the files that hold rows: JSON lines, JSON, CSV, parquet, gzip of the text formats, saved data sets."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterable
from json import JSONDecodeError
from pathlib import Path

from kd.errors import UserError
from kd.files import list_repeated, parse_json

FILE_KINDS = ".jsonl, .json, .csv or .parquet"
Records = Iterable[tuple[int, object]]
"""Records with the numbers of their lines, or of their rows where a format has no lines, counted from 1."""

_LINE_END = re.compile(rb"\r\n|\n|\r")
_LONGEST_CELL = 100_000_000
"""Characters of a cell of a CSV file; Python's own limit is 131,072."""
_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of what is often taken for UTF-8 text."""


def file_kind(path: Path) -> str | None:
    """The suffix that says how a file is read, in lower case and without .gz; None if no reader knows it."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz" and suffixes[-2:-1] != [".parquet"]:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _READERS else None


def read_records(path: Path) -> Records:
    """The records of one file.

    Raises:
        UserError: unreadable or broken file.
    """
    kind = file_kind(path)
    assert kind is not None
    return _READERS[kind](path)


def read_json_lines_records(path: Path) -> Records:
    """One JSON value per line; blank lines are skipped."""
    return _parse_lines(_read_bytes(path), path=path)


def read_saved(path: Path) -> Records:
    """The rows of a directory that `datasets.save_to_disk` wrote.

    Raises:
        UserError: it holds several splits, or is broken.
    """
    import datasets
    import pyarrow

    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, pyarrow.ArrowException) as error:
        # The last ones come from JSON files of another form.
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(f"{path}: not a readable data set of datasets ({reason}); save it again") from None
    if isinstance(found, datasets.DatasetDict):
        splits = ", ".join(str(path / name) for name in found)
        raise UserError(f"{path}: expected one data set, found several splits; give one of {splits}")
    return number_rows(found, source=str(path))


def number_rows(rows: Iterable[object], *, source: str) -> Records:
    """The rows of a data set of `datasets`, which decodes them one by one.

    Raises:
        UserError: a row cannot be decoded.
    """
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield number, row
    except (OSError, ValueError, ImportError, OverflowError) as error:
        # A damaged image, text that is not UTF-8, no package for sound, a date that Python does not have.
        raise UserError(
            f"{source}:{number + 1}: cannot be decoded ({one_line(error)[:200]}); correct or remove that column"
        ) from None


def one_line(error: Exception) -> str:
    """The message of `error` without line breaks."""
    return " ".join(str(error).split())


def _read_json(path: Path) -> Records:
    """A list of records, or a record per line."""
    content = _read_bytes(path)
    if not content.strip():
        return []
    if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _parse_json_objects(content, path=path)
    values = _parse(content, path=path)
    if not isinstance(values, list):
        raise UserError(f"{path}: expected a JSON list of objects, or an object per line; write it as one of them")
    return enumerate(values, start=1)


def _parse_json_objects(content: bytes, *, path: Path) -> Records:
    """A record per line, or one record over several lines."""
    try:
        return [(1, parse_json(content.decode("utf-8-sig")))]
    except (JSONDecodeError, UnicodeDecodeError):
        return _parse_lines(content, path=path)
    except (ValueError, RecursionError):
        # JSON, but in its first object lies what cannot be read: said with its location.
        return [(1, _parse(content, path=path, line=1))]


def _parse_lines(content: bytes, *, path: Path) -> Records:
    # Lines are split as bytes, so that a line which is not valid UTF-8 can be named.
    lines = enumerate(_LINE_END.split(content), start=1)
    return ((number, _parse(line, path=path, line=number)) for number, line in lines if line.strip())


def _parse(content: bytes, *, path: Path, line: int | None = None) -> object:
    """The JSON value of `content`, which is a whole file or its line number `line`."""
    location = f"{path}:{line}" if line else str(path)
    try:
        return parse_json(_decode(content, location=location))
    except JSONDecodeError as error:
        raise UserError(
            f"{path}:{line or error.lineno}: not valid JSON ({error.msg}, column {error.colno}); correct that line"
        ) from None
    except RecursionError:
        raise UserError(f"{location}: lists or objects are nested too deeply; correct it") from None
    except ValueError as error:
        # A key that is there twice, or an integer of more than 4,300 digits, which Python refuses.
        raise UserError(f"{location}: not readable as JSON ({one_line(error)[:100]}); correct it") from None


def _decode(content: bytes, *, location: str) -> str:
    if content.startswith(tuple(_SIGNATURES)):
        [kind] = [kind for signature, kind in _SIGNATURES.items() if content.startswith(signature)]
        raise UserError(f"{location}: expected UTF-8 text, found {kind}; save it as UTF-8, or correct its suffix")
    if b"\0" in content:
        raise UserError(f"{location}: holds a NUL byte, so it is no UTF-8 text, or damaged; save the file as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: not valid UTF-8 (byte {error.start}); save the file as UTF-8") from None


def _read_csv(path: Path) -> Records:
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(io.StringIO(_decode(_read_bytes(path), location=str(path)), newline=""), strict=True)
    header: list[str] = []
    last = 0
    rows: list[tuple[int, object]] = []
    try:
        for cells in filter(None, reader):
            if not header:
                header = cells
                _check_header(header, location=f"{path}:{reader.line_num}")
            elif len(cells) != len(header):
                raise UserError(
                    f"{path}:{reader.line_num}: expected {len(header)} cells, as in the header, found {len(cells)};"
                    " quote cells that contain commas or line breaks"
                )
            else:
                # A table cannot leave out a column: an empty cell means that the row has none.
                rows.append((reader.line_num, dict(zip(header, (cell or None for cell in cells), strict=True))))
            last = reader.line_num
    except csv.Error as error:
        # A quote that is not closed fails at the end of the file, but its row is the one to correct.
        raise UserError(f"{path}:{last + 1}: not valid CSV ({error}); correct that line") from None
    return rows


def _check_header(names: Iterable[str], *, location: str) -> None:
    # An index without a name is often written; nothing reads it.
    names = [name for name in names if name]
    if repeated := list_repeated(names):
        raise UserError(f"{location}: several columns are called {repeated}; rename all but one")
    if len(names) == 1 and re.search(r"[;\t|]", names[0]):
        raise UserError(f"{location}: expected columns with commas between them, found `{names[0]}`; write it so")


def _read_parquet(path: Path) -> Records:
    import pyarrow
    import pyarrow.parquet

    content = _read_bytes(path)
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        _check_header(file.schema_arrow.names, location=str(path))
        rows: list[object] = file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        # Besides Arrow's own: damaged pages, text that is not UTF-8, dates that Python does not have.
        raise UserError(f"{path}: not a valid parquet file ({one_line(error)[:200]}); write it again") from None
    return enumerate(rows, start=1)


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        # A path with NUL or half of a surrogate pair is a ValueError.
        reason = error.strerror if isinstance(error, OSError) else one_line(error)
        raise UserError(f"{path}: cannot be read ({reason}); give the path of a {FILE_KINDS} file") from None
    if path.suffix.lower() != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a valid gzip file ({one_line(error)}); compress it again") from None


_READERS: dict[str, Callable[[Path], Records]] = {
    ".jsonl": read_json_lines_records,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
