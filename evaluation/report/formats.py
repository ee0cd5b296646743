"""What the report takes from the files of the other commands; what else stands in them is not read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from evaluation.exposure_bias.curve import ExposureBias
from evaluation.intervals import Estimate
from evaluation.judge.scores import FeedbackScore
from evaluation.results import Summary
from evaluation.student_friendliness.page import ShownExample
from evaluation.student_friendliness.summary import RowSet
from kd.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How responses were made."""

    template: str
    greedy: bool
    temperature: float
    max_new_tokens: int

    def __str__(self) -> str:
        return f"{'greedy' if self.greedy else f'temperature {self.temperature:g}'}, {self.max_new_tokens} tokens"


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult(Summary):
    """One benchmark of results.json."""

    decoding: Decoding


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """results.json of evaluate.py."""

    model: str
    soft_prompt: str | None
    seeds: tuple[int, ...]
    benchmarks: dict[str, BenchmarkResult]


@dataclass(frozen=True, kw_only=True)
class StudentCurve:
    """One student of Fig. 3(a)."""

    curve: ExposureBias


@dataclass(frozen=True, kw_only=True)
class ProgressPoint:
    """A student while it was trained."""

    training_step: int
    ExAccErr: Estimate


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One training of Fig. 3(b)."""

    generation_steps: int
    best_step: int | None
    points: tuple[ProgressPoint, ...]


@dataclass(frozen=True, kw_only=True)
class ExposureBiasResults:
    """exposure_bias.json of evaluation.exposure_bias."""

    version: Literal[1]
    teacher: str
    data: str
    num_requests: int
    students: dict[str, StudentCurve]
    progress: dict[str, Progress]


@dataclass(frozen=True, kw_only=True)
class FriendlinessResults:
    """student_friendliness.json of evaluation.student_friendliness."""

    version: Literal[1]
    teacher: str
    soft_prompt: str
    initial: str
    final: str
    sets: dict[Literal["seen", "unseen"], RowSet]
    examples: tuple[ShownExample, ...]


@dataclass(frozen=True, kw_only=True)
class JudgeModel:
    """Who judged."""

    model: str
    temperature: float


@dataclass(frozen=True, kw_only=True)
class JudgeResults:
    """judge.json of evaluation.judge."""

    version: Literal[1]
    judge: JudgeModel
    scores: dict[str, dict[str, FeedbackScore]]


@dataclass(frozen=True, kw_only=True)
class CostCase:
    method: str
    zero_stage: int
    gather: str = "auto"
    """As `engine.gather`; files of before there was a choice do not say it."""

    @property
    def sharding(self) -> str:
        """The stage, and how models are gathered where that was prescribed."""
        return f"ZeRO-{self.zero_stage}{'' if self.gather == 'auto' else f' by {self.gather}'}"


@dataclass(frozen=True, kw_only=True)
class PeakBytes:
    """Of one rank; on a CPU its resident memory."""

    allocated: int
    reserved: int | None


@dataclass(frozen=True, kw_only=True)
class CostEntry:
    """The step of one method."""

    case: CostCase
    step_seconds: float
    seconds: dict[str, float]
    """By parts of the step."""
    tokens_per_second: float
    peak: PeakBytes


@dataclass(frozen=True, kw_only=True)
class CostMachine:
    """What steps were measured on."""

    num_ranks: int
    cpu: str
    gpus: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CostResults:
    """cost.json of evaluation.bench."""

    preset_name: str
    machine: CostMachine
    costs: tuple[CostEntry, ...]


def read_json(path: Path, kind: type[T]) -> T:
    """Read a file of another command.

    Raises:
        UserError: it cannot be read, or lacks something.
    """
    try:
        return TypeAdapter(kind).validate_json(read_text(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise UserError(
            f"{path}: {place}: {first['msg'].lower()}; make it again with this version of the command that wrote it"
        ) from None


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable or give another --runs") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no UTF-8 text; make it again, or give another --runs") from None
