"""Which students of PromptKD were trained alike but for one decision."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Generic, TypeVar

from evaluation.report.findings import Findings, size, standard_error
from evaluation.report.models import Model
from evaluation.report.tables import Cell
from evaluation.report.training import TrainingRun
from kd.config.schema import Config

S = TypeVar("S", bound=Hashable)

# What does not decide the course of a training; a name that ends with a dot is a whole section.
_IRRELEVANT = (
    "run.", "checkpoints.", "cluster.", "validation.", "engine.", "schedule.micro_batch",
    "model.gradient_checkpointing", "generation.layout", "generation.tensor_parallel_size",
    "generation.max_batch_tokens", "generation.keep_weights",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Student:
    """One trained student with its score."""

    run: TrainingRun
    model: Model
    score: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Variant(Generic[S]):
    """Students of one setting: several trainings, such as with other seeds, count as one."""

    setting: S
    students: tuple[Student, ...]

    @property
    def cell(self) -> Cell:
        """Mean ROUGE-L, with its standard error over the trainings if there are several."""
        scores = [student.score for student in self.students]
        return Cell(value=fmean(scores), digits=2, standard_error=standard_error(scores))


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison(Generic[S]):
    """Two or more variants that differ in the setting alone."""

    variants: tuple[Variant[S], ...]

    @property
    def size(self) -> str:
        """Parameters of the students."""
        return size(self.variants[0].students[0].model.num_parameters)


def comparisons(findings: Findings, *, setting: Callable[[Config], S], free: Sequence[str]) -> Iterator[Comparison[S]]:
    """PromptKD's students in groups of equal configurations but for the fields in `free`, which make the setting."""
    groups: dict[Hashable, dict[S, list[Student]]] = {}
    for student in _students(findings):
        settings = student.run.settings.items()
        rest = tuple((name, str(value)) for name, value in settings if not _is_among(name, (*_IRRELEVANT, *free)))
        groups.setdefault(rest, {}).setdefault(setting(student.run.config), []).append(student)
    for group in groups.values():
        if len(group) > 1:
            yield Comparison(
                variants=tuple(Variant(setting=value, students=tuple(own)) for value, own in group.items())
            )


def _is_among(name: str, fields: Sequence[str]) -> bool:
    return any(name.startswith(field) if field.endswith(".") else name == field for field in fields)


def _students(findings: Findings) -> Iterator[Student]:
    """One of each PromptKD run: its best if that was evaluated, as in the paper, else its last."""
    for run in findings.outputs.trainings:
        own = {model.part: model for model in findings.students if model.run is run}
        model = own.get("best") or own.get("final")
        if run.config.method != "promptkd" or model is None:
            continue
        mean = findings.mean(model)
        if mean is not None:
            yield Student(run=run, model=model, score=mean.value)
