"""The numbers that the paper reports, from paper_figures.json, which says where they are from."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Generic, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")

Scores = tuple[float, ...]
"""In the order of `PaperFigures.benchmarks`."""


@dataclass(frozen=True, kw_only=True)
class PaperTeacher:
    size: str
    rouge_l: Scores


@dataclass(frozen=True, kw_only=True)
class PaperStudent:
    size: str
    rouge_l: dict[str, Scores]
    """By method."""


@dataclass(frozen=True, kw_only=True)
class PaperFamily:
    """One family of models in Table 1."""

    family: str
    teacher: PaperTeacher
    students: tuple[PaperStudent, ...]


@dataclass(frozen=True, kw_only=True)
class PaperCost:
    """Gigabytes on one GPU, and hours of the training."""

    allocated_gb: float
    cached_gb: float
    hours: float


@dataclass(frozen=True, kw_only=True)
class PaperCosts:
    setting: str
    remark: str
    methods: dict[str, PaperCost]


@dataclass(frozen=True, kw_only=True)
class PaperTeacherDistance:
    """The teacher under one condition; divergences to the initial and the final student in nats."""

    seen_initial_kl: float
    seen_final_kl: float
    seen_rouge_l: float
    unseen_initial_kl: float
    unseen_final_kl: float
    unseen_rouge_l: float


@dataclass(frozen=True, kw_only=True)
class PaperFriendliness:
    family: str
    without_prompt: PaperTeacherDistance
    with_prompt: PaperTeacherDistance


@dataclass(frozen=True, kw_only=True)
class PaperFeedback:
    setting: str
    benchmarks: tuple[str, ...]
    scores: dict[str, Scores]
    """By method, in the order of `benchmarks`."""


@dataclass(frozen=True, kw_only=True)
class PaperRows(Generic[T]):
    """A table with a row for each decision."""

    setting: str
    rows: tuple[T, ...]


@dataclass(frozen=True, kw_only=True)
class PaperAdaptation:
    adaptation: str
    rouge_l: float
    num_parameters: int
    hours: float


@dataclass(frozen=True, kw_only=True)
class PaperRegularization:
    setting: str
    rouge_l: dict[str, dict[str, float]]
    """By size of the student and kind of regularization."""


@dataclass(frozen=True, kw_only=True)
class PaperDivergencePair:
    kd: str
    regularization: str
    rouge_l: float


@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """Tables of arXiv 2402.12842."""

    source: str
    benchmarks: tuple[str, ...]
    table1: tuple[PaperFamily, ...]
    table3: PaperCosts
    table4: tuple[PaperFriendliness, ...]
    table6: PaperFeedback
    table9: PaperRows[PaperAdaptation]
    table11: PaperRegularization
    table12: PaperRows[PaperDivergencePair]

    def score(self, scores: Scores, benchmark: str) -> float | None:
        """The score on a benchmark; None if the paper does not have it."""
        return dict(zip(self.benchmarks, scores, strict=True)).get(benchmark)

    def mean(self, scores: Scores, benchmarks: Sequence[str]) -> float | None:
        """Mean over benchmarks; None if the paper lacks one of them."""
        chosen = [self.score(scores, benchmark) for benchmark in benchmarks]
        known = [score for score in chosen if score is not None]
        return sum(known) / len(known) if known and len(known) == len(chosen) else None


@cache
def paper_figures() -> PaperFigures:
    """Read the file that comes with the package."""
    text = resources.files("evaluation.report").joinpath("paper_figures.json").read_text(encoding="utf-8")
    return TypeAdapter(PaperFigures).validate_json(text)
