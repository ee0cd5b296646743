"""Table 1 and Figure 1: ROUGE-L of the evaluated models beside the paper's."""

import textwrap
from collections.abc import Callable, Iterator, Sequence

from evaluation.report.findings import Findings, Section, listing, size
from evaluation.report.models import Model
from evaluation.report.paper import PaperFamily
from evaluation.report.pictures import FAINT, INK, PAPER, Axes, Looks, Picture, draw, label
from evaluation.report.score_details import details_table, differences_table
from evaluation.report.tables import Cell, RowGroup, Table, text

_BAR = 0.3
"""Height of a bar with its gap [inches]."""
_LABEL_WIDTH = 26


def scores_section(findings: Findings) -> Section:
    """All scores; empty without an evaluation."""
    section = Section(key="scores", title="Scores")
    if not findings.models:
        return section
    tables = [table1(findings), *differences_table(findings)]
    if not findings.is_comparable and findings.families:
        tables.append(_paper_table(findings))
    tables.append(details_table(findings))
    pictures = _figure1(findings) if findings.shared_benchmarks else []
    return Section(key=section.key, title=section.title, pictures=tuple(pictures), tables=tuple(tables))


def table1(findings: Findings) -> Table:
    """ROUGE-L of all models, with the paper's rows if they are about one of the benchmarks."""
    columns = [*findings.benchmarks]
    groups = [RowGroup(title="This report", rows=tuple(_own_rows(findings, columns)))]
    if findings.is_comparable:
        columns = [*dict.fromkeys([*findings.paper.benchmarks, *columns])]
        groups = [RowGroup(title="This report", rows=tuple(_own_rows(findings, columns)))]
        groups += _paper_groups(findings, columns, means_over=findings.shared_benchmarks)
    note = "ROUGE-L ×100: mean over the sampling seeds ± its standard error. Bold: the best of a size."
    note += " †: not below the teacher."
    if len(findings.shared_benchmarks) > 1:
        note += f" Mean: over {listing(findings.shared_benchmarks)}."
    if findings.is_comparable:
        note += (
            f" The paper’s rows: {findings.paper.source}. Below, “All evaluations” says on how many rows and with what"
            " decoding this report’s scores are."
        )
    return Table(
        key="table1",
        title="Table 1: ROUGE-L",
        columns=("model", "parameters", "method", *columns, *_mean_column(findings)),
        groups=tuple(groups),
        note=note,
    )


def _paper_table(findings: Findings) -> Table:
    """The paper's Table 1 for itself, where nothing can stand beside it."""
    columns = findings.paper.benchmarks
    return Table(
        key="table1-paper",
        title="The paper’s Table 1, on other benchmarks",
        columns=("model", "parameters", "method", *columns, "mean"),
        groups=tuple(_paper_groups(findings, columns, means_over=columns)),
        note=f"{findings.paper.source}. †: not below the teacher.",
        is_folded=True,
    )


def _mean_column(findings: Findings) -> list[str]:
    return ["mean"] if len(findings.shared_benchmarks) > 1 else []


def _own_rows(findings: Findings, columns: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    teachers = findings.with_role("teacher")

    def score(model: Model, column: str) -> float | None:
        return model.benchmarks[column].rougeL.mean if column in model.benchmarks else None

    for model in findings.models:
        rivals = [other for other in findings.students if other.num_parameters == model.num_parameters]
        cells = []
        for column in columns:
            value = score(model, column)
            # With several teachers nobody can say whose student this is.
            least = score(teachers[0], column) if len(teachers) == 1 else None
            cells.append(
                Cell(
                    value=value,
                    standard_error=model.benchmarks[column].rougeL.standard_error if value is not None else None,
                    is_best=model.is_student and _is_best(value, [score(rival, column) for rival in rivals]),
                    beats_teacher=model.is_student and None not in (value, least) and value >= least,  # type: ignore[operator]
                )
            )
        if _mean_column(findings):
            mean = findings.mean(model)
            means = [other.value for other in map(findings.mean, rivals) if other is not None]
            cells.append(
                Cell(
                    value=None if mean is None else mean.value,
                    standard_error=None if mean is None else mean.standard_error,
                    is_best=model.is_student and mean is not None and _is_best(mean.value, means),
                )
            )
        yield text(model.name), text(size(model.num_parameters)), text(model.method), *cells


def _is_best(value: float | None, rivals: Sequence[float | None]) -> bool:
    known = [rival for rival in rivals if rival is not None]
    return value is not None and len(known) > 1 and value == max(known)


def _paper_groups(findings: Findings, columns: Sequence[str], *, means_over: Sequence[str]) -> list[RowGroup]:
    return [
        RowGroup(
            title=f"{family.family}, from the paper",
            rows=tuple(_paper_rows(findings, family, columns, means_over=means_over)),
        )
        for family in findings.paper.table1
        if family.family in findings.families
    ]


def _paper_rows(
    findings: Findings, family: PaperFamily, columns: Sequence[str], *, means_over: Sequence[str]
) -> Iterator[tuple[Cell, ...]]:
    paper = findings.paper
    of_teacher = {column: paper.score(family.teacher.rouge_l, column) for column in columns}
    # The columns of all tables are as many: a mean stands where ours have one.
    with_mean = len(means_over) > 1
    teacher = [Cell(value=of_teacher[column]) for column in columns]
    if with_mean:
        teacher.append(Cell(value=paper.mean(family.teacher.rouge_l, means_over)))
    yield text("teacher"), text(family.teacher.size), text(""), *teacher
    for student in family.students:
        for method, scores in student.rouge_l.items():
            cells = []
            for column in columns:
                value, least = paper.score(scores, column), of_teacher[column]
                rivals = [paper.score(other, column) for other in student.rouge_l.values()]
                cells.append(
                    Cell(
                        value=value,
                        is_best=_is_best(value, rivals),
                        beats_teacher=value is not None and least is not None and value >= least,
                    )
                )
            if with_mean:
                means = [paper.mean(other, means_over) for other in student.rouge_l.values()]
                mean = paper.mean(scores, means_over)
                cells.append(Cell(value=mean, is_best=_is_best(mean, means)))
            yield text("student"), text(student.size), text(method), *cells


def _figure1(findings: Findings) -> list[Picture]:
    """Means of all models as bars, and beside them the paper's over the same benchmarks."""
    benchmarks = findings.shared_benchmarks
    names = f", mean over {listing(benchmarks)}" if len(benchmarks) > 1 else f" on {benchmarks[0]}"
    known = [model for model in findings.models if model.role != "teacher" and findings.mean(model) is not None]
    dashed = "; dashed: the teacher" if findings.with_role("teacher") else ""
    picture = draw(
        "figure1",
        _bars(findings, known),
        description=f"Figure 1: ROUGE-L of each model{names}{dashed}.",
        height=0.9 + _BAR * len(known),
    )
    family = next((one for one in findings.paper.table1 if one.family in findings.families), None)
    if family is None or any(name not in findings.paper.benchmarks for name in findings.shared_benchmarks):
        return [picture]
    paper = draw(
        "figure1-paper",
        _paper_bars(findings, family),
        description=f"The same means of the paper’s {family.family} students; dashed: their teacher.",
    )
    return [picture, paper]


def _bars(findings: Findings, models: Sequence[Model]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        for place, model in enumerate(models):
            mean = findings.mean(model)
            if mean is None:
                continue
            error = mean.standard_error or 0.0
            axes.barh(place, mean.value, height=0.62, color=findings.looks[model.name].color)
            if error:
                axes.errorbar(mean.value, place, xerr=error, color=INK, linewidth=1, capsize=2.5)
            axes.annotate(
                f"{mean.value:.1f}", (mean.value + error, place), (4, 0), textcoords="offset points", va="center",
                # The teacher's line must not cross it.
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},
            )  # fmt: skip
        for teacher in findings.with_role("teacher"):
            mean = findings.mean(teacher)
            if mean is not None:
                axes.axvline(mean.value, color=INK, linestyle="--", linewidth=1, label=label(teacher.name))
        wrapped = [textwrap.fill(model.name, _LABEL_WIDTH) for model in models]
        axes.set_yticks(range(len(models)), wrapped)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.14)
        axes.set_xlim(left=0)
        axes.set_xlabel("ROUGE-L")

    return paint


def _paper_bars(findings: Findings, family: PaperFamily) -> Callable[[Axes], None]:
    benchmarks = findings.shared_benchmarks
    looks = Looks(family.students[0].rouge_l)

    def paint(axes: Axes) -> None:
        for place, student in enumerate(family.students):
            width = 0.8 / len(student.rouge_l)
            for index, (method, scores) in enumerate(student.rouge_l.items()):
                left = place + (index - (len(student.rouge_l) - 1) / 2) * width
                mean = findings.paper.mean(scores, benchmarks)
                axes.bar(
                    left,
                    mean,
                    width=0.9 * width,
                    color=looks[method].color,
                    label=method if not place else None,
                )
        axes.axhline(
            findings.paper.mean(family.teacher.rouge_l, benchmarks), color=FAINT, linestyle="--", linewidth=1.2
        )
        axes.set_xticks(range(len(family.students)), [student.size for student in family.students])
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("ROUGE-L")

    return paint
