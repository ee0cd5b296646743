"""What stands behind the scores: paired differences, and everything else that results.json says."""

from collections.abc import Iterator

from evaluation.compare import RowScores, paired_difference, read_row_scores
from evaluation.report.findings import Findings
from evaluation.report.models import Model
from evaluation.report.tables import Cell, RowGroup, Table, text


def differences_table(findings: Findings) -> Iterator[Table]:
    """The first PromptKD student, or else the first student, minus each other model; nothing without two models.

    Raises:
        UserError: a file of generations is broken.
    """
    students = findings.students
    base = next((model for model in students if model.method == "PromptKD"), students[0] if students else None)
    others = [model for model in findings.models if model is not base]
    if base is None or not others:
        return
    scores = {
        (model.name, benchmark): read_row_scores(scored.directory, benchmark=scored.name, metric="rougeL")
        for model in findings.models
        for benchmark, scored in model.scored.items()
        if benchmark in base.benchmarks
    }
    columns = [name for benchmark in base.benchmarks for name in (benchmark, f"p, {benchmark}")]
    rows = []
    for other in others:
        cells: list[Cell] = []
        for benchmark in base.benchmarks:
            cells += _difference(scores[base.name, benchmark], scores.get((other.name, benchmark)))
        rows.append((text(other.name), *cells))
    yield Table(
        key="differences",
        title=f"By how much {base.name} leads",
        columns=("over", *columns),
        groups=(RowGroup(title="", rows=tuple(rows)),),
        note=(
            "Difference of ROUGE-L with its 95 % interval and p, by paired bootstrap over the rows, each with its mean"
            " over the seeds. It says what other rows would change, not what another training would. A dash: other"
            " rows or other seeds were answered."
        ),
    )


def _difference(base: RowScores, other: RowScores | None) -> tuple[Cell, Cell]:
    if other is None or (base.seeds, base.rows) != (other.seeds, other.rows) or len(base.rows) < 2:
        return Cell(value=None), Cell(value=None)
    found = paired_difference(base.values, other.values)
    return (
        Cell(value=found.mean, interval=(found.low, found.high)),
        Cell(value=found.p_value, digits=4),
    )


def details_table(findings: Findings) -> Table:
    """Both scores and how responses ended, a group for each benchmark."""
    return Table(
        key="evaluations",
        title="All evaluations",
        columns=(
            "model", "ROUGE-L", "error over rows", "exact match", "rows", "seeds", "cut %", "empty %", "tokens",
            "decoding, at most",
        ),
        groups=tuple(
            RowGroup(title=benchmark, rows=tuple(_detail_rows(findings.models, benchmark)))
            for benchmark in findings.benchmarks
        ),
        note=(
            "± standard error over the seeds: what other samples would change; error over rows: what other rows would."
            " Cut: responses without an end within the limit; tokens: mean length of the responses."
        ),
        is_folded=True,
    )  # fmt: skip


def _detail_rows(models: tuple[Model, ...], benchmark: str) -> Iterator[tuple[Cell, ...]]:
    for model in models:
        result = model.benchmarks.get(benchmark)
        if result is None:
            continue
        yield (
            text(model.name),
            Cell(value=result.rougeL.mean, digits=2, standard_error=result.rougeL.standard_error),
            Cell(value=result.rougeL.standard_error_over_rows, digits=2),
            Cell(value=result.exact_match.mean, digits=2, standard_error=result.exact_match.standard_error),
            Cell(value=result.num_samples, digits=0),
            Cell(value=len(result.rougeL.per_seed), digits=0),
            Cell(value=100 * result.truncated_share),
            Cell(value=100 * result.empty_share),
            Cell(value=result.response_tokens.mean),
            text(str(result.decoding)),
        )
