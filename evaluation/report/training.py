"""A training as its run directory tells it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from evaluation.records import Record, parse_record, read_records
from evaluation.report.formats import read_text
from kd.config.load import read_config
from kd.config.schema import Config
from kd.errors import UserError

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METHODS = {
    "sft": "SFT",
    "kd": "KD",
    "seqkd": "SeqKD",
    "gkd": "GKD",
    "minillm": "MiniLLM",
    "distillm": "DistiLLM",
    "promptkd": "PromptKD",
}
"""As the paper writes them."""
SCORE = "validation/rougeL"

Flat: TypeAlias = dict[str, Any]
"""Values by names such as `schedule.steps`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRun:
    """What a run directory holds, but for its weights."""

    directory: Path
    name: str
    config: Config
    records: tuple[Record, ...]
    """In the order of their steps."""
    environment: Mapping[str, Any]

    @property
    def method(self) -> str:
        return METHODS[self.config.method]

    @cached_property
    def seconds_at(self) -> dict[int, float]:
        """Seconds of all optimizer steps up to each record's; validation, checkpoints and start not counted."""
        passed, previous, seconds = 0.0, 0, {}
        for record in self.records:
            passed += (record["step"] - previous) * record["step_seconds"]
            previous = record["step"]
            seconds[previous] = passed
        return seconds

    @property
    def num_steps(self) -> int:
        """Steps that were logged."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def seconds(self) -> float | None:
        """Of all optimizer steps; None before the first."""
        return self.seconds_at[self.num_steps] if self.records else None

    @property
    def peak_bytes(self) -> int | None:
        """Largest that a rank needed; on a CPU its resident memory."""
        return max((int(record["peak_memory_bytes"]) for record in self.records), default=None)

    @property
    def best(self) -> Record | None:
        """The record of the best validation by ROUGE-L, the first of equals."""
        return max(
            (record for record in self.records if SCORE in record), key=lambda record: record[SCORE], default=None
        )

    @cached_property
    def settings(self) -> Flat:
        """The configuration."""
        return _flatten(asdict(self.config))

    @cached_property
    def conditions(self) -> Flat:
        """Ranks, devices and versions."""
        kept = ("num_ranks", "devices", "git_revision", "python", "packages")
        return _flatten({name: self.environment[name] for name in kept if name in self.environment})


def read_training(directory: Path, *, name: str) -> TrainingRun:
    """Read a run directory, also of a run that is still going on.

    Raises:
        UserError: one of its files is broken.
    """
    environment = directory / ENVIRONMENT_FILE
    return TrainingRun(
        directory=directory,
        name=name,
        config=_read_config(directory / CONFIG_FILE),
        records=tuple(read_records(directory, required=("step", "step_seconds", "peak_memory_bytes"))),
        environment=parse_record(read_text(environment), path=environment) if environment.exists() else {},
    )


def _read_config(path: Path) -> Config:
    try:
        return read_config(path)
    except UserError as error:
        # Of many runs, the message must say which; some of them do.
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None


def _flatten(values: Mapping[str, Any]) -> Flat:
    flat: Flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": content for inner, content in _flatten(value).items()}
        else:
            flat[name] = value
    return flat
