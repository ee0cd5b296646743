"""The page of the student-friendliness analysis: its table and its examples, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.analysis.student_friendliness.summary import Column, RowSet

SHOWN_MODELS = ("teacher_without_prompt", "teacher_with_prompt", "initial_student", "final_student")
"""The models whose responses an example has, in their order on the page."""
_HEADINGS = (
    "rows",
    "teacher",
    "KL(p‖q) to the initial student",
    "to the final student",
    "KL(q‖p) to the initial",
    "to the final",
    "ROUGE-L",
)
_COLUMNS = ("without_prompt", "with_prompt", "difference")


def table(sets: Mapping[str, RowSet]) -> str:
    """The table with its intervals."""
    lines = [_HEADINGS, ("---",) * len(_HEADINGS)]
    lines += [
        (name, column.replace("_", " "), *_cells(getattr(content, column)))
        for name, content in sets.items()
        for column in _COLUMNS
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(column: Column) -> list[str]:
    students = (column.initial, column.final)
    estimates = [student.forward_kl for student in students] + [student.reverse_kl for student in students]
    return [str(estimate) for estimate in (*estimates, column.rougeL)]


def page(sets: Mapping[str, RowSet], examples: Sequence[Mapping[str, Any]], *, subtitle: str) -> str:
    """The table and the examples."""
    lines = ["# The teacher with and without the prompt", "", subtitle, "", table(sets), ""]
    lines += [
        f"{name}: {content.num_rows} rows of `{content.data}`, {content.num_tokens} tokens in their outputs."
        for name, content in sets.items()
    ]
    lines += ["", "Divergences in nats per token of the outputs; brackets hold 95 % intervals over rows.", ""]
    for example in examples:
        lines += [f"## Row {example['row']}", ""]
        for name in ("prompt", "reference", *SHOWN_MODELS):
            lines += [f"**{name.replace('_', ' ').capitalize()}**", "", *_quoted(example[name]), ""]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    """A block of code, in which no part of a response is taken for Markdown."""
    return [f"    {line}" for line in text.split("\n")] if text.strip() else ["*(nothing)*"]
