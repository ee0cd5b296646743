"""Tables read alike on the page, in CSV and in LaTeX."""

import csv
import io

import pytest

from evaluation.report.tables import Cell, RowGroup, Table, text

TABLE = Table(
    key="t",
    title="Of 50 % & more",
    columns=("a_b", "score", "gap"),
    groups=(
        RowGroup(
            title="ours, #1",
            rows=(
                (text("x_1\\y"), Cell(value=12.3456789, standard_error=0.25, is_best=True), Cell(value=None)),
                (text("{z}"), Cell(value=-0.04, beats_teacher=True), Cell(value=-1.5, interval=(-2.0, 0.25))),
            ),
        ),
        RowGroup(title="theirs", rows=((text("u"), Cell(value=23916, digits=0), Cell(value=None)),)),
    ),
)


def test_cells_say_what_they_know() -> None:
    cells = TABLE.rows[0] + TABLE.rows[1] + TABLE.rows[2]
    assert [cell.text for cell in cells] == ["x_1\\y", "12.3", "–", "{z}", "0.0", "−1.5", "u", "23,916", "–"]
    assert [cell.spread for cell in cells] == ["", "± 0.2", "", "", "", "[−2.0, 0.2]", "", "", ""]
    assert [cell.mark for cell in TABLE.rows[1]] == ["", "†", ""]


def test_csv_has_numbers_with_their_spread_in_columns() -> None:
    rows = list(csv.reader(io.StringIO(TABLE.csv())))
    assert rows == [
        ["group", "a_b", "score", "score, standard error", "gap", "gap, low", "gap, high"],
        ["ours, #1", "x_1\\y", "12.3457", "0.25", "", "", ""],
        ["ours, #1", "{z}", "-0.04", "", "-1.5", "-2", "0.25"],
        ["theirs", "u", "23916", "", "", "", ""],
    ]


def test_latex_escapes_what_would_be_a_command() -> None:
    assert TABLE.latex().splitlines() == [
        r"% Of 50 \% \& more; needs \usepackage{booktabs}",
        r"\begin{tabular}{lrr}",
        r"\toprule",
        r"a\_b & score & gap \\",
        r"\midrule",
        r"\multicolumn{3}{l}{\emph{ours, \#1}} \\",
        r"x\_1\textbackslash{}y & \textbf{12.3} $\pm$ 0.2 & -- \\",
        r"\{z\} & 0.0$^\dagger$ & $-$1.5 [$-$2.0, 0.2] \\",
        r"\midrule",
        r"\multicolumn{3}{l}{\emph{theirs}} \\",
        r"u & 23,916 & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_name_cannot_leave_its_line_of_latex() -> None:
    table = Table(
        key="t", title="a\n\\input{b}", columns=("c",), groups=(RowGroup(title="d\ne", rows=((text("f\ng"),),)),)
    )
    assert len(table.latex().splitlines()) == 9
    assert table.latex().startswith(r"% a \textbackslash{}input\{b\}; needs")


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 cells in every row"):
        Table(key="t", title="", columns=("a", "b"), groups=(RowGroup(title="", rows=((text("x"),),)),))
