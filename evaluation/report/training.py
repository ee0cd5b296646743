"""One training as its run directory describes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from kd.errors import UserError
from kd.train.metric_log import FILE_NAME, read_metrics
from kd.train.run_directory import CONFIG_FILE, ENVIRONMENT_FILE

Flat = dict[str, Any]
"""Values by names such as `schedule.steps`."""

_REQUIRED = ("step", "step_seconds", "peak_memory_bytes")
_CONDITIONS = ("num_ranks", "devices", "git_revision", "python", "packages")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """A run directory without its weights."""

    directory: Path
    name: str
    settings: Flat
    """config.yaml, read without kd.config: a run may have a method or a field that is not installed here."""
    conditions: Flat
    """Ranks, devices and versions of environment.json."""
    metrics: pd.DataFrame
    """metrics.jsonl, a row for each logged step; `seconds` is the time of all optimizer steps so far [s]."""

    @property
    def method(self) -> str:
        """The configuration's method; of a class outside the package (`pkg.module:Class`), the class's name."""
        return str(self.settings.get("method", "")).rpartition(":")[2]

    @property
    def num_steps(self) -> int:
        """The last step that was logged; 0 before the first."""
        return int(self.metrics["step"].max()) if len(self.metrics) else 0

    @property
    def seconds(self) -> float | None:
        """Time of all optimizer steps without start, validation and checkpoints [s]; None before the first."""
        return float(self.metrics["seconds"].max()) if len(self.metrics) else None


def read_training(directory: Path, *, name: str) -> TrainingRun:
    """Read a run directory, also of a run that is not finished.

    Raises:
        UserError: one of its files is broken.
    """
    environment = directory / ENVIRONMENT_FILE
    conditions = read_object(environment) if environment.exists() else {}
    records = read_metrics(directory)
    for number, record in enumerate(records, start=1):
        if not all(isinstance(record.get(name), int | float) for name in _REQUIRED):
            raise UserError(f"{directory / FILE_NAME}:{number}: expected {', '.join(_REQUIRED)}; remove that line")
    metrics = pd.DataFrame(records) if records else pd.DataFrame(columns=list(_REQUIRED), dtype=float)
    # A record holds means over all steps since the record before it.
    metrics["seconds"] = (metrics["step"].diff().fillna(metrics["step"]) * metrics["step_seconds"]).cumsum()
    return TrainingRun(
        directory=directory,
        name=name,
        settings=_flatten(read_object(directory / CONFIG_FILE)),
        conditions=_flatten({key: conditions[key] for key in _CONDITIONS if key in conditions}),
        metrics=metrics,
    )


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, or the mapping of a .yaml file.

    Raises:
        UserError: the file cannot be read, or has something else.
    """
    kind, parse = ("YAML mapping", yaml.safe_load) if path.suffix == ".yaml" else ("JSON object", json.loads)
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable or give another --runs") from None
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a {kind}; write it again, or give another --runs")
    return content


def _flatten(values: Mapping[str, Any]) -> Flat:
    [flat] = pd.json_normalize(dict(values)).to_dict("records")
    return {str(name): value for name, value in flat.items()}
