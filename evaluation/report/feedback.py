"""Table 6: a judge's feedback on the responses, relative to the references."""

from collections.abc import Iterator, Sequence

from evaluation.judge.scores import FeedbackScore
from evaluation.report.findings import Findings, Section
from evaluation.report.formats import JudgeResults
from evaluation.report.models import column_of
from evaluation.report.tables import Cell, RowGroup, Table, text


def feedback_section(findings: Findings) -> Section:
    """Table 6; empty without an output of evaluation.judge."""
    outputs = findings.outputs.judgements
    section = Section(key="feedback", title="Feedback of a judge")
    if not outputs:
        return section
    found = [_by_column(output.results) for output in outputs]
    paper = findings.paper.table6
    columns = list(dict.fromkeys(name for scores in found for of_model in scores.values() for name in of_model))
    # The paper's are of use only beside scores on the same rows.
    is_comparable = any(name in paper.benchmarks for name in columns)
    if is_comparable:
        columns = [*dict.fromkeys([*paper.benchmarks, *columns])]
    groups = [
        RowGroup(title=f"Judged by {output.results.judge.model}", rows=tuple(_rows(scores, columns)))
        for output, scores in zip(outputs, found, strict=True)
    ]
    if is_comparable:
        rows = [
            (
                text(method),
                *(Cell(value=dict(zip(paper.benchmarks, scores, strict=True)).get(name), digits=2) for name in columns),
                *[Cell(value=None)] * 2,
            )
            for method, scores in paper.scores.items()
        ]
        groups.append(RowGroup(title=f"The paper: {paper.setting}", rows=tuple(rows)))
    table = Table(
        key="table6",
        title="Table 6: feedback scores",
        columns=("model", *columns, "comparisons", "without scores"),
        groups=tuple(groups),
        note=(
            "Σ scores of the model / Σ scores of the references × 100, mean over the sampling seeds ± its standard"
            " error. Comparisons whose replies had no scores are in none."
        ),
    )
    return Section(key=section.key, title=section.title, tables=(table,))


def _by_column(results: JudgeResults) -> dict[str, dict[str, FeedbackScore]]:
    return {
        model: {column_of(name, among=list(scores)): score for name, score in scores.items()}
        for model, scores in results.scores.items()
    }


def _rows(scores: dict[str, dict[str, FeedbackScore]], columns: Sequence[str]) -> Iterator[tuple[Cell, ...]]:
    best = {
        column: max((of[column].score or 0.0 for of in scores.values() if column in of), default=0.0)
        for column in columns
    }
    for model, of_model in scores.items():
        cells = []
        for column in columns:
            score = of_model.get(column)
            cells.append(
                Cell(
                    value=None if score is None else score.score,
                    digits=2,
                    standard_error=None if score is None else score.standard_error,
                    is_best=len(scores) > 1 and score is not None and score.score == best[column],
                )
            )
        lost = sum(score.num_rejected + score.num_unanswered for score in of_model.values())
        judged = sum(score.num_judged for score in of_model.values())
        yield text(model), *cells, Cell(value=judged, digits=0), Cell(value=lost, digits=0)
