"""What every method has: what it needs, its settings' checks, one optimizer step, and state that checkpoints keep."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from kd.config.fields import Section
from kd.config.schema import Config
from kd.data.global_batch import EmptyBatchError, GlobalBatch, GlobalBatcher
from kd.data.loader import BatchLoader, ExampleBatch
from kd.distributed import World
from kd.errors import LoneUserError, UserError

if TYPE_CHECKING:
    # Imported for types only: the configuration and --help should not wait for DeepSpeed.
    from kd.models.handle import ModelContext
    from kd.models.student import Student
    from kd.models.teacher import AdaptedTeacher, Teacher
    from kd.models.vocabulary import SharedVocabulary
    from kd.rollout.sampler import Sampler
    from kd.zero.recorder import Recorder, StepMetrics

STUDENT_ROWS = 1
"""A random stream beside those of rollouts, which have no spawn key."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a method needs, given its settings. There are no defaults: each method decides on all of it."""

    teacher: bool
    """A teacher while training."""
    rollouts: bool
    """Responses sampled from the student (unless data.responses replaces them)."""
    references: bool
    """A response of its own in each training row."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodContext:
    """The parts of a run that a method works with."""

    config: Config
    world: World
    student: "Student"
    teacher: "Teacher | AdaptedTeacher | None"
    sampler: "Sampler | None"
    """Rolls out the student; None where the method needs no rollouts."""
    loader: BatchLoader
    """This rank's training rows, for methods that sample ahead."""
    batcher: GlobalBatcher
    vocabulary: "SharedVocabulary"
    recorder: "Recorder"
    run_dir: Path
    say: Callable[[str], None]
    """Writes a line to the run's log."""


class Method(ABC):
    """A training algorithm.

    A subclass is one file: its settings (`sections`), what it needs, their checks, and `step`.
    """

    sections: ClassVar[Mapping[str, type[Section]]] = {}
    """Sections of the configuration that belong to the method, by name."""
    follows_validation: ClassVar[bool] = False
    """Whether `follow_validation` is to be called with validation losses."""
    alternative_sources: ClassVar[bool] = True
    """Whether data.train and data.responses exclude each other."""

    def __init__(self, context: MethodContext) -> None:
        self.config = context.config
        self.world = context.world
        self.student = context.student
        self.batcher = context.batcher
        self.vocabulary = context.vocabulary
        self.recorder = context.recorder
        self.teacher = cast("Teacher | AdaptedTeacher", context.teacher)
        """Frozen, unless `load_teacher` loads another kind; None for a method without one."""
        self._sampler = context.sampler
        from kd.models.teacher import AdaptedTeacher

        self.trained_teacher = context.teacher if isinstance(context.teacher, AdaptedTeacher) else None
        """The teacher, if a part of it is trained: checkpoints keep it and exports contain it."""

    @property
    def rolls_out(self) -> bool:
        """Whether it learns from responses that are sampled while training."""
        return self._sampler is not None

    @classmethod
    def create(cls, context: MethodContext) -> "Method":
        """The method for these settings."""
        return cls(context)

    @classmethod
    @abstractmethod
    def needs(cls, config: Config) -> Needs:
        """What the method needs with these settings."""
        ...

    @abstractmethod
    def step(self, batch: ExampleBatch) -> None:
        """One optimizer step on a global batch; all ranks call it together."""
        ...

    def run(self, batch: ExampleBatch) -> "StepMetrics":
        """Run `step` and return what it measured; a failed step leaves no gradient behind.

        Raises:
            LoneUserError: this rank is out of memory.
        """
        self.recorder.start(step=batch.step)
        is_complete = False
        try:
            self.step(batch)
            is_complete = True
        except EmptyBatchError:
            return self.recorder.skip()
        except (RuntimeError, MemoryError) as error:
            from kd.zero.memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise LoneUserError(
                f"rank {self.world.rank} is out of memory in step {batch.step}, {self.recorder.phase} ({reason});"
                " lower schedule.micro_batch or engine.inference_batch_tokens, or partition the models (engine.student,"
                " engine.teacher)"
            ) from error
        finally:
            if not is_complete:
                self.student.discard()
                if self.trained_teacher is not None:
                    self.trained_teacher.discard()
        return self.recorder.finish()

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse settings that the method cannot train with.

        Raises:
            UserError: the first problem.
        """

    @classmethod
    def check_files(cls, config: Config) -> None:
        """Refuse missing files before any weights are loaded.

        Raises:
            UserError: the first one that cannot be read.
        """

    @classmethod
    def teacher_slots(cls, config: Config) -> int:
        """Soft prompt tokens that precede the teacher's sequences."""
        return 0

    @classmethod
    def decodes_with_teacher(cls, config: Config) -> bool:
        """Whether the teacher takes part in rollouts."""
        return False

    @classmethod
    def load_teacher(cls, context: "ModelContext") -> "Teacher | AdaptedTeacher":
        """Load the teacher that the method works with, a frozen one unless a subclass trains a part of it.

        Raises:
            UserError: the DeepSpeed JSON or the checkpoint cannot be used.
        """
        from kd.models.teacher import Teacher

        return Teacher(context)

    def state_dict(self) -> dict[str, Any]:
        """What this rank must remember between steps beyond its engines; checkpoints keep it.

        In tensors, numbers, strings, and lists and dictionaries of them.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on the same rank; tensors come back on the CPU."""

    def follow_validation(self, loss: float) -> None:
        """Take note of a validation loss [nats per token]: before the first step, and at every validation."""

    def rollout(self, batch: ExampleBatch, *, student_fraction: float = 1.0, keep_hidden: bool = False) -> GlobalBatch:
        """Responses sampled from the student, in one call for the global batch.

        With data.responses these are the fixed responses instead.

        Args:
            student_fraction: probability that a row gets a sampled response; the others keep their own.
            keep_hidden: keep the student's hidden states, which `student.outputs` then returns without a forward pass.
        """
        if self._sampler is None:
            return self.references(batch)
        rows = [
            row
            for row in batch.examples
            if self.is_student_row(row.row_id, step=batch.step, student_fraction=student_fraction)
        ]
        with self.recorder.time("generation"):
            # Where the student is gathered once for a global batch, this also serves the inference copy and the head.
            self.student.engine.gather()
            # All ranks must sample together: a rank without such a row discards the response of its first row.
            sampled = self._sampler.sample(
                rows or batch.examples[:1], seed=self.config.run.seed, step=batch.step, keep_hidden=keep_hidden
            )
        responses = {row.row_id: sequence for row, sequence in zip(rows, sampled.sequences, strict=False)}
        return self.batcher(
            [responses.get(row.row_id) or row.with_response() for row in batch.examples], student_hidden=sampled.hidden
        )

    def references(self, batch: ExampleBatch) -> GlobalBatch:
        """The rows' own responses: references, or the fixed responses of data.responses."""
        return self.batcher([example.with_response() for example in batch.examples])

    def is_student_row(self, row_id: int, *, step: int, student_fraction: float) -> bool:
        """Whether a row gets a sampled response in a step: the same on any rank and in any split."""
        return uniform(self.config.run.seed, step, row_id, stream=STUDENT_ROWS) < student_fraction


def uniform(*entropy: int, stream: int) -> float:
    """A number in [0, 1) that depends on `entropy` and the number of the stream, and on nothing else."""
    return float(np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(stream,))).random())


def refuse_mixture_with_fixed_responses(config: Config, *, field: str, fraction: float) -> None:
    """Refuse a mixture of sampled responses and references where data.responses replaces both.

    Raises:
        UserError: `fraction` is less than 1, and data.responses is set.
    """
    if fraction < 1 and config.data.responses is not None:
        raise UserError(
            f"{field}={fraction} mixes the student's responses with those of data.train, but data.responses replaces"
            " both; set it to 1"
        )
