"""What the tests of evaluate.py share: rows, command lines, and the files that a call writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kd.models.soft_prompt import SoftPromptOrigin, save_soft_prompt

ROWS: list[dict[str, object]] = [
    {"instruction": "Name the capital.", "input": "", "output": ["Paris", "the capital is Paris"]},
    {"instruction": "Sort these words: river, apple, stone, and then say which one is longest.", "output": "apple"},
    {"instruction": "Which is the odd one out?", "output": "spoon"},
    {"instruction": "Count.", "output": "two"},
    {"instruction": "Say it again, " * 20, "output": "too long"},
]


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(model: Path, benchmark: Path, out: Path, *extra: str) -> list[str]:
    fixed = ["--max-new-tokens", "8", "--max-prompt-tokens", "100", "--seeds", "10,20"]
    return ["--model", str(model), "--benchmark", f"test={benchmark}", "--out", str(out), *fixed, *extra]


def read_results(out: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results


def contents(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.jsonl")}


def save_prompt(path: Path, *, width: int) -> Path:
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(1))
    save_soft_prompt(values, path, origin=SoftPromptOrigin(teacher="t", init="random", init_text=""))
    return path
