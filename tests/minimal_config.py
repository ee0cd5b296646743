"""The shortest configurations that load."""

from pathlib import Path
from typing import Any

import yaml

from kd.config.schema import Config
from kd.methods import load_config

MINIMAL: dict[str, Any] = {
    "model": {"student": "s", "teacher": "t"},
    "data": {"train": "rows.jsonl"},
    "run": {"dir": "runs/x"},
}
"""Of the default method."""
METHOD_OVERRIDES: dict[str, list[str]] = {
    "sft": ["model.teacher=null"],
    "seqkd": ["data.responses=y.jsonl"],
    "minillm": ["minillm.corpus=none"],
    "distillm": ["data.validation=v.jsonl"],
}
"""What other methods need beside `method`."""


def write_config(directory: Path, values: object = MINIMAL, *, name: str = "run.yaml") -> Path:
    """Write `values` as YAML; a string is written as it is."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


def load_minimal(directory: Path, *overrides: str, method: str = "promptkd") -> Config:
    """The minimal configuration of a method, with overrides."""
    needed = METHOD_OVERRIDES.get(method, [])
    return load_config(write_config(directory), overrides=[f"method={method}", *needed, *overrides])
