"""Tables that a page shows, and that are written as CSV and as LaTeX."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "−": "$-$",
        "×": r"$\times$",
        "±": r"$\pm$",
        "‖": r"$\|$",
        "≥": r"$\geq$",
        "η": r"$\eta$",
        "λ": r"$\lambda$",
    }
)
_DAGGER = "†"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A text or a number, with a standard error or an interval; None is shown as a dash."""

    value: float | str | None
    digits: int = 1
    """After the decimal point."""
    standard_error: float | None = None
    interval: tuple[float, float] | None = None
    is_best: bool = False
    beats_teacher: bool = False

    @property
    def is_number(self) -> bool:
        return not isinstance(self.value, str)

    @property
    def text(self) -> str:
        """The value as it is shown."""
        if self.value is None:
            return "–"
        return self.value if isinstance(self.value, str) else self._shown(self.value)

    @property
    def spread(self) -> str:
        """What stands behind the value."""
        if self.value is None:
            return ""
        if self.standard_error is not None:
            return f"± {self._shown(self.standard_error)}"
        if self.interval is not None:
            return f"[{self._shown(self.interval[0])}, {self._shown(self.interval[1])}]"
        return ""

    def _shown(self, number: float) -> str:
        # A hyphen is no minus sign, and −0.0 no number.
        text = f"{number:,.{self.digits}f}"
        return text.lstrip("-") if not text.strip("-0.,") else text.replace("-", "−")

    @property
    def mark(self) -> str:
        return _DAGGER if self.beats_teacher else ""

    @property
    def latex(self) -> str:
        text = latex_text(self.text)
        text = rf"\textbf{{{text}}}" if self.is_best else text
        return text + (r"$^\dagger$" if self.mark else "") + (f" {latex_text(self.spread)}" if self.spread else "")


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Rows under a heading of their own; an empty title is none."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of equal length under column headings; `key` names its files."""

    key: str
    title: str
    columns: tuple[str, ...]
    groups: tuple[RowGroup, ...]
    note: str = ""
    is_folded: bool = False
    """Shown when asked for."""

    def __post_init__(self) -> None:
        """Refuse ragged tables.

        Raises:
            ValueError: a row has more or fewer cells than there are columns.
        """
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.key}: expected {len(self.columns)} cells in every row")

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        return [row for group in self.groups for row in group.rows]

    @property
    def number_columns(self) -> list[bool]:
        """For each column, whether it has no text."""
        return [all(cell.is_number for cell in column) for column in zip(*self.rows, strict=True)]

    def csv(self) -> str:
        """Fractions with six significant digits; standard errors and intervals in columns of their own."""
        has_titles = any(group.title for group in self.groups)
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        columns = [list(column) for column in zip(*self.rows, strict=True)]
        extras = [_extras(column) for column in columns]
        heading = [name for title, extra in zip(self.columns, extras, strict=True) for name in _titles(title, extra)]
        writer.writerow([*(["group"] if has_titles else []), *heading])
        for group in self.groups:
            for row in group.rows:
                cells = [text for cell, extra in zip(row, extras, strict=True) for text in _values(cell, extra)]
                writer.writerow([*([group.title] if has_titles else []), *cells])
        return file.getvalue()

    def latex(self) -> str:
        """A tabular for the package booktabs."""
        shape = "".join("r" if is_number else "l" for is_number in self.number_columns)
        return "\n".join([f"% {latex_text(self.title)}; needs \\usepackage{{booktabs}}", *self._latex_lines(shape), ""])

    def _latex_lines(self, shape: str) -> Iterator[str]:
        yield rf"\begin{{tabular}}{{{shape}}}"
        yield r"\toprule"
        yield " & ".join(map(latex_text, self.columns)) + r" \\"
        for group in self.groups:
            yield r"\midrule"
            if group.title:
                yield rf"\multicolumn{{{len(shape)}}}{{l}}{{\emph{{{latex_text(group.title)}}}}} \\"
            yield from (" & ".join(cell.latex for cell in row) + r" \\" for row in group.rows)
        yield r"\bottomrule"
        yield r"\end{tabular}"


def text(value: str) -> Cell:
    """A cell without a number."""
    return Cell(value=value)


def latex_text(value: str) -> str:
    """`value` with everything escaped that LaTeX would take for a command."""
    return " ".join(value.split()).translate(_LATEX)


def _extras(column: Sequence[Cell]) -> tuple[str, ...]:
    names = []
    if any(cell.standard_error is not None for cell in column):
        names.append("standard error")
    if any(cell.interval is not None for cell in column):
        names += ["low", "high"]
    return tuple(names)


def _titles(title: str, extras: tuple[str, ...]) -> list[str]:
    return [title, *(f"{title}, {extra}" for extra in extras)]


def _values(cell: Cell, extras: tuple[str, ...]) -> list[str]:
    low, high = cell.interval or (None, None)
    known = {"standard error": cell.standard_error, "low": low, "high": high}
    return [_plain(value) for value in (cell.value, *(known[extra] for extra in extras))]


def _plain(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
