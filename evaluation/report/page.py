"""The page and the files beside it: pandas writes the tables, matplotlib the pictures, Jinja the HTML."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jinja2
import pandas as pd
from markupsafe import Markup
from pandas.io.formats.style import Styler

from evaluation.pictures import load_pyplot
from kd.errors import UserError
from kd.files import write_atomically

# matplotlib has no types.
Axes: TypeAlias = Any
Figure: TypeAlias = Any

ERROR, LOW, HIGH = " ±", " low", " high"
"""Ends of the names of columns with the standard error or the interval of another column."""
HEIGHT = 3.1
"""Of a picture without its legend [inches]."""
_WIDTH, _LEGEND_LINE = 4.4, 0.2
_STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.35,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """A data frame to show, and to write as CSV and LaTeX; `key` names its files.

    A column `x ±`, or two columns `x low` and `x high`, are shown behind the numbers of the column `x`.
    """

    key: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    digits: Mapping[str, int] = field(default_factory=dict)
    """Digits after the decimal point of a column, where they are not 1."""
    best: pd.DataFrame | None = None
    """True where a number is bold; columns may be missing."""
    content: Literal["numbers", "texts"] = "numbers"
    """Texts keep their line breaks, and are not written as LaTeX."""

    @property
    def html(self) -> Markup:
        numbers = ", ".join(f".col{index}" for index, name in enumerate(self._shown()) if self._is_number(name))
        rules: Any = [{"selector": numbers, "props": "text-align: right"}] if numbers else []
        return Markup(self._styler("html").set_table_styles(rules).to_html())

    @property
    def csv(self) -> str:
        """Fractions with six significant digits."""
        return str(self.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))

    @property
    def latex(self) -> str:
        """A tabular for the package booktabs."""
        columns = "".join("r" if self._is_number(name) else "l" for name in self._shown())
        return str(self._styler("latex").to_latex(hrules=True, convert_css=True, column_format=columns))

    def _is_number(self, column: str) -> bool:
        return bool(pd.api.types.is_numeric_dtype(self.frame[column]))

    def _shown(self) -> pd.DataFrame:
        """The table as text, with the spread of a number behind it."""
        spreads = {name + end for name in self.frame for end in (ERROR, LOW, HIGH)}
        columns = [name for name in self.frame if name not in spreads]
        rows = [row for _, row in self.frame.iterrows()]
        return pd.DataFrame({name: [self._cell(row, name) for row in rows] for name in columns}, dtype=object)

    def _cell(self, row: Any, column: str) -> str:
        digits = self.digits.get(column, 1)

        def number(name: str) -> str:
            # Adding 0 turns -0.0 into 0.0.
            return f"{round(float(row[name]), digits) + 0:,.{digits}f}"

        if pd.isna(row[column]):
            return "–"
        if not self._is_number(column):
            return str(row[column])
        if pd.notna(row.get(column + ERROR)):
            return f"{number(column)} ± {number(column + ERROR)}"
        if pd.notna(row.get(column + LOW)):
            return f"{number(column)} [{number(column + LOW)}, {number(column + HIGH)}]"
        return number(column)

    def _styler(self, escape: Literal["html", "latex"]) -> Styler:
        shown = self._shown()
        # Without random ids: equal inputs give equal files.
        styler = Styler(shown, uuid=self.key, cell_ids=False).hide(axis="index")
        styler = styler.format(escape=escape).format_index(escape=escape, axis="columns")
        if self.best is not None:
            best = self.best.reset_index(drop=True).reindex(columns=shown.columns, fill_value=False)
            styler = styler.apply(lambda _: best.map({True: "font-weight: bold"}.get), axis=None)
        return styler


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawing; `key` names its files, `description` is its caption."""

    key: str
    description: str
    svg: str
    pdf: bytes

    @property
    def source(self) -> str:
        """The SVG as a URL, which keeps its ids and styles apart from those of the page."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode()}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A part of the page; left out if it has neither picture nor table."""

    key: str
    title: str
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


def draw(key: str, paint: Callable[[Axes], None], *, description: str, height: float = HEIGHT) -> Picture:
    """Draw one pair of axes, with a legend of all labelled lines below it."""
    plt = load_pyplot()
    # Names of runs are not formulas.
    with plt.rc_context({**_STYLE, "text.parse_math": False}):
        figure, axes = plt.subplots(figsize=(_WIDTH, height), layout="constrained")
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = 2 if max(map(len, labels)) < 25 else 1
            figure.set_figheight(height + _LEGEND_LINE * -(-len(labels) // columns))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        return picture(key, figure, description=description)


def picture(key: str, figure: Figure, *, description: str) -> Picture:
    """Take over a figure, and close it."""
    plt = load_pyplot()
    svg, pdf = io.StringIO(), io.BytesIO()
    # With a fixed salt and without dates: equal inputs give equal files.
    with plt.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None}, transparent=True)
    plt.close(figure)
    return Picture(key=key, description=description, svg=svg.getvalue(), pdf=pdf.getvalue())


def write_page(out: Path, *, title: str, sections: Sequence[Section], footer: str) -> None:
    """Write the page without empty sections, and its tables and pictures beside it; print what was written.

    Raises:
        UserError: a file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evaluation.report"),
        # Names and responses may look like HTML.
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [section for section in sections if section.pictures or section.tables]
    files = out.with_name(f"{out.stem}_files")
    for table in (table for section in sections for table in section.tables):
        write_atomically(files / f"{table.key}.csv", table.csv)
        if table.content == "numbers":
            write_atomically(files / f"{table.key}.tex", table.latex)
    for drawing in (drawing for section in sections for drawing in section.pictures):
        write_atomically(files / f"{drawing.key}.svg", drawing.svg)
        _write_bytes(files / f"{drawing.key}.pdf", drawing.pdf)
    template = environment.get_template("page.html.jinja")
    write_atomically(out, template.render(title=title, sections=sections, footer=footer, files=files.name))
    print(f"{out}: {', '.join(section.title for section in sections)}; tables and pictures: {files}")


def _write_bytes(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose a writable --out") from None
