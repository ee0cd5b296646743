"""Pictures as SVG and PDF for papers, and as SVG in a page's own colours. Needs matplotlib (extra `report`)."""

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from evaluation.pictures import COLORS, MARKERS

# matplotlib's objects have no types.
Axes: TypeAlias = Any

INK, FAINT, PAPER = "#202124", "#9aa0a6", "#fefefe"
WIDTH, HEIGHT = 4.4, 3.1
"""Of one picture without its legend [inches]."""
_LEGEND_LINE = 0.2
_LEGEND_WIDTH = 58
"""Letters in a line of the legend."""
# Any: matplotlib's types list every name.
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9.5,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    # Names of runs are no formulas.
    "text.parse_math": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}
# What a colour of the drawing is in the page, which has values for light and for dark.
_PAGE_COLORS = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    PAPER: "var(--page)",
    **{color: f"var(--series-{index})" for index, color in enumerate(COLORS)},
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawing; `key` names its files, `description` says what is to be seen."""

    key: str
    description: str
    svg: str
    pdf: bytes

    @property
    def inline(self) -> Markup:
        """The SVG to stand in a page: its colours, and names that no other picture there has."""
        opening, body = self.svg[self.svg.index("<svg") :].split(">", maxsplit=1)
        width = round(float(re.search(r' width="([\d.]+)pt"', opening)[1]) * 96 / 72)  # type: ignore[index]
        opening = re.sub(r' (width|height)="[\d.]+pt"', "", opening)
        # So wide, but never wider than the window.
        opening += f' style="width: {width}px" role="img" aria-label="{escape(self.description)}"'
        body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
        body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.key}-", body)
        for color, variable in _PAGE_COLORS.items():
            body = body.replace(color, variable)
        return Markup(f"{opening}>{body}")


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a name is drawn, the same in all pictures of a page."""

    color: str
    marker: str
    line: str


class Looks:
    """Deals out colours; names beyond their number differ by the kind of line."""

    def __init__(self, names: Iterable[str]) -> None:
        self._places = {name: place for place, name in enumerate(dict.fromkeys(names))}

    def __getitem__(self, name: str) -> Look:
        place = self._places.setdefault(name, len(self._places))
        lines = ("-", "--", ":", "-.")
        return Look(
            color=COLORS[place % len(COLORS)],
            marker=MARKERS[place % len(MARKERS)],
            line=lines[place // len(COLORS) % len(lines)],
        )


def draw(key: str, paint: Callable[[Axes], None], *, description: str, height: float = HEIGHT) -> Picture:
    """Draw one pair of axes, with a legend of all labelled lines below it."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            columns = max(1, min(len(labels), _LEGEND_WIDTH // (max(map(len, labels)) + 8)))
            figure.set_figheight(height + _LEGEND_LINE * -(-len(labels) // columns))
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.4, fontsize=8.5)
        svg, pdf = io.StringIO(), io.BytesIO()
        # Without dates: equal inputs give equal files.
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return Picture(key=key, description=description, svg=svg.getvalue(), pdf=pdf.getvalue())


def label(name: str) -> str:
    """`name` for a legend; matplotlib hides what begins with an underscore."""
    return f" {name}" if name.startswith("_") else name
