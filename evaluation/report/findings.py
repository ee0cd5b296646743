"""What the sections of a page are made from, and what they are made of."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from evaluation.report.models import Model, Role
from evaluation.report.outputs import Outputs
from evaluation.report.paper import PaperFigures
from evaluation.report.pictures import Looks, Picture
from evaluation.report.tables import Table


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one model says in a sample."""

    speaker: str
    text: str
    score: float | None = None
    """ROUGE-L ×100."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A request and its answers."""

    title: str
    prompt: str
    references: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page; left out if it has no picture, table or sample."""

    key: str
    title: str
    text: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    samples: tuple[Sample, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.pictures or self.tables or self.samples)

    @property
    def keys(self) -> set[str]:
        """Of its pictures and tables."""
        return {picture.key for picture in self.pictures} | {table.key for table in self.tables}


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """ROUGE-L ×100, the mean over benchmarks."""

    value: float
    standard_error: float | None
    """Over the seeds; None with one, or where benchmarks have different ones."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """Everything that was read."""

    outputs: Outputs
    models: tuple[Model, ...]
    paper: PaperFigures
    families: tuple[str, ...]
    """Of the paper's models, those to show."""
    num_samples: int
    """Rows of each benchmark to show."""
    looks: Looks
    """One for each run and model, the same all over the page."""

    @property
    def students(self) -> list[Model]:
        return [model for model in self.models if model.is_student]

    def with_role(self, role: Role) -> list[Model]:
        return [model for model in self.models if model.role == role]

    @cached_property
    def benchmarks(self) -> tuple[str, ...]:
        """All that a model was scored on, those of Table 1 first."""
        names = list(dict.fromkeys(name for model in self.models for name in model.benchmarks))
        known = [name for name in self.paper.benchmarks if name in names]
        return (*known, *(name for name in names if name not in known))

    @cached_property
    def shared_benchmarks(self) -> tuple[str, ...]:
        """Those that all students were scored on; means are over these."""
        return tuple(name for name in self.benchmarks if all(name in model.benchmarks for model in self.students))

    @property
    def is_comparable(self) -> bool:
        """Whether one of the benchmarks is the paper's."""
        return any(name in self.paper.benchmarks for name in self.benchmarks)

    def mean(self, model: Model) -> MeanScore | None:
        """Over the shared benchmarks; None if there are none, or a teacher lacks one."""
        if not self.shared_benchmarks or any(name not in model.benchmarks for name in self.shared_benchmarks):
            return None
        scores = [model.benchmarks[name].rougeL for name in self.shared_benchmarks]
        seeds = [set(score.per_seed) for score in scores]
        per_seed = []
        if all(own == seeds[0] for own in seeds):
            per_seed = [statistics.fmean(score.per_seed[seed] for score in scores) for seed in sorted(seeds[0])]
        return MeanScore(
            value=statistics.fmean(score.mean for score in scores), standard_error=standard_error(per_seed)
        )


def standard_error(values: Sequence[float]) -> float | None:
    """Of their mean; None for fewer than two."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def listing(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def size(num_parameters: int | None) -> str:
    """As the paper writes sizes: 340M, 1.3B."""
    if num_parameters is None:
        return "–"
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if num_parameters >= 0.9995 * unit:
            return f"{num_parameters / unit:.3g}{letter}"
    return str(num_parameters)
