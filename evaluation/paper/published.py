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


def published(table: str, *, families: Sequence[str] = FAMILIES) -> pd.DataFrame:
    """One table of the paper, such as table1; `families` select its rows where it has several."""
    frame = pd.DataFrame(PUBLISHED[table]["rows"], columns=PUBLISHED[table]["columns"])
    if "family" not in frame:
        return frame.assign(source="paper")
    frame = frame[frame["family"].isin(families)]
    return frame.assign(source="paper, " + frame["family"]).drop(columns="family")
