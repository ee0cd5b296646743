"""The numbers of arXiv 2402.12842, from published.json, as data frames."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.benchmarks.specs import SPECS

FAMILIES = ("GPT-2", "OPT", "Llama")
PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
BENCHMARKS: list[str] = PUBLISHED["benchmarks"]
"""The columns of Table 1."""


def column_of(benchmark: str) -> str:
    """The column of Table 1 for a benchmark's name, such as S-NI for s_ni; other names stay as they are."""
    columns = {_plain(name): spec.column for key, spec in SPECS.items() for name in (key, spec.column)}
    return columns.get(_plain(benchmark), benchmark)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def published_table1(families: Sequence[str]) -> pd.DataFrame:
    """ROUGE-L of teachers and students, a column for each benchmark."""
    rows = []
    for family in (family for family in PUBLISHED["table1"] if family["family"] in families):
        source = f"paper, {family['family']}"
        rows.append([source, "teacher", family["teacher"]["size"], "", *family["teacher"]["rouge_l"]])
        for student in family["students"]:
            rows += [
                [source, "student", student["size"], method, *scores] for method, scores in student["rouge_l"].items()
            ]
    return pd.DataFrame(rows, columns=["source", "model", "parameters", "method", *BENCHMARKS])


def published_table4(families: Sequence[str]) -> pd.DataFrame:
    """Divergences and ROUGE-L of the teacher with and without its prompt."""
    return pd.DataFrame(
        {"source": f"paper, {family['family']}", "teacher": condition.replace("_", " "), **family[condition]}
        for family in PUBLISHED["table4"]
        for condition in ("without_prompt", "with_prompt")
        if family["family"] in families
    )


def published_table6() -> pd.DataFrame:
    """Feedback scores, a column for each benchmark."""
    table = PUBLISHED["table6"]
    frame = pd.DataFrame.from_dict(table["scores"], orient="index", columns=table["benchmarks"])
    frame = frame.reset_index(names="model")
    frame.insert(0, "source", "paper")
    return frame
