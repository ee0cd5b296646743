"""A model with its scores, from one evaluation or several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from evaluation.benchmarks.specs import SPECS
from evaluation.report.formats import BenchmarkResult, EvaluationResults
from evaluation.report.outputs import Output
from evaluation.report.training import TrainingRun
from kd.models.soft_prompt import FILE_NAME as PROMPT_FILE

Role = Literal["teacher", "teacher with prompt", "start", "student", "other"]
ROLES: tuple[Role, ...] = ("teacher", "teacher with prompt", "start", "student", "other")
"""In the order of the page."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One benchmark."""

    directory: Path
    """--out of evaluate.py."""
    name: str
    """What it was called there."""
    result: BenchmarkResult


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """What was evaluated; `evaluations` have no benchmark in common."""

    name: str
    role: Role
    run: TrainingRun | None
    """The training that made it, or its prompt."""
    part: str | None
    """Where in the run directory it lies, such as final."""
    evaluations: tuple[Output[EvaluationResults], ...]
    num_parameters: int | None
    """Without prompts and adapters; None where its weights are not to be found."""

    @property
    def is_student(self) -> bool:
        return self.role not in ("teacher", "teacher with prompt")

    @property
    def method(self) -> str:
        """Of the training."""
        return self.run.method if self.run is not None and self.role == "student" else ""

    @property
    def scored(self) -> dict[str, Scored]:
        """By the benchmarks' names in Table 1 where they have one there, else as they were called."""
        found = [
            Scored(directory=evaluation.directory, name=name, result=result)
            for evaluation in self.evaluations
            for name, result in evaluation.results.benchmarks.items()
        ]
        return {column_of(one.name, among=[other.name for other in found]): one for one in found}

    @property
    def benchmarks(self) -> dict[str, BenchmarkResult]:
        """As `scored`."""
        return {column: one.result for column, one in self.scored.items()}


def column_of(name: str, *, among: Sequence[str]) -> str:
    """The column of Table 1 for a benchmark, such as S-NI for s_ni; its own name without one, or if two claim it."""
    columns = {_plain(text): spec.column for key, spec in SPECS.items() for text in (key, spec.column)}
    column = columns.get(_plain(name))
    rivals = [other for other in among if columns.get(_plain(other)) == column]
    return name if column is None or len(rivals) > 1 else column


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def count_parameters(directory: Path) -> int | None:
    """Parameters in the weights of a from_pretrained directory, tied ones counted once."""
    files = [path for path in sorted(directory.glob("*.safetensors")) if path.name != PROMPT_FILE]
    return sum(count_values(path) for path in files) or None


def count_values(path: Path) -> int:
    """Values in a safetensors file; 0 if it is none."""
    try:
        with safe_open(path, framework="np") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))
    except (OSError, SafetensorError):
        return 0
