"""The page of the student-friendliness analysis: its table and its examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from evaluation.analysis.student_friendliness.summary import Column, RowSet
from evaluation.display import results_console
from evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class ShownExample:
    """One row and the responses of all models to it."""

    row: int
    prompt: str
    reference: str
    teacher_without_prompt: str
    teacher_with_prompt: str
    initial_student: str
    final_student: str


SHOWN_MODELS = ("teacher_without_prompt", "teacher_with_prompt", "initial_student", "final_student")
"""The models whose responses a `ShownExample` has, in their order on the page."""
HEADINGS = (
    "KL(p‖q) to the initial student",
    "to the final student",
    "KL(q‖p) to the initial",
    "to the final",
    "ROUGE-L",
)
_LABELS = {"without_prompt": "without prompt", "with_prompt": "with prompt", "difference": "difference"}


def table_rows(sets: Mapping[str, RowSet], *, shown: Callable[[Estimate], str] = str) -> Iterator[tuple[str, ...]]:
    """Cells of the table, a row for each set and column; `shown` writes an estimate."""
    for name, content in sets.items():
        for key, label in _LABELS.items():
            column: Column = getattr(content, key)
            values = (
                column.initial.forward_kl,
                column.final.forward_kl,
                column.initial.reverse_kl,
                column.final.reverse_kl,
                column.rougeL,
            )
            yield (name, label, *map(shown, values))


def print_table(sets: Mapping[str, RowSet]) -> None:
    """Show the table on the terminal, which has no room for intervals."""
    table = Table("rows", "teacher", *HEADINGS, title="The teacher with and without the prompt")
    for cells in table_rows(sets, shown=lambda estimate: "–" if estimate.value is None else f"{estimate.value:.4g}"):
        table.add_row(*cells)
    results_console().print(table)


def page(sets: Mapping[str, RowSet], examples: Sequence[ShownExample], *, subtitle: str) -> str:
    """The table and the examples as Markdown."""
    headings = ("rows", "teacher", *HEADINGS)
    lines = ["# The teacher with and without the prompt", "", subtitle, ""]
    lines += [_line(headings), _line(["---"] * len(headings)), *(_line(cells) for cells in table_rows(sets)), ""]
    lines += [
        f"{name}: {content.num_rows} rows of `{content.data}`, {content.num_tokens} tokens in their outputs."
        for name, content in sets.items()
    ]
    lines += ["", "Divergences in nats per token of the outputs; brackets hold 95 % intervals over rows.", ""]
    for example in examples:
        lines += [f"## Row {example.row}", ""]
        for name in ("prompt", "reference", *SHOWN_MODELS):
            lines += [f"**{name.replace('_', ' ').capitalize()}**", "", *_quoted(getattr(example, name)), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _quoted(text: str) -> list[str]:
    """A block of code, in which no part of a response is taken for Markdown."""
    return [f"    {line}" for line in text.split("\n")] if text.strip() else ["*(nothing)*"]
