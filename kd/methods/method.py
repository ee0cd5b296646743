"""What every method is made of: a window in, one optimizer step, measurements out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kd.config.schema import Config
from kd.data.batch import SequenceBatch, TokenSequence, cut_micro_batches, cut_passes
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.losses.fused import FusedLoss, chunk_rows, fused_loss
from kd.losses.terms import Projection, Term
from kd.models.student import Student
from kd.models.teacher import Teacher
from kd.models.vocabulary import SharedVocabulary
from kd.rollout.sampler import PseudoTargets
from kd.zero.optimizer import learning_rate_factor
from kd.zero.recorder import StepMetrics, Stopwatch

Targets = Callable[[ExampleBatch], PseudoTargets]
"""The sequences to learn from: sampled for the window, or the rows' own responses."""


@dataclass(frozen=True, kw_only=True)
class TokenMean:
    """Scale of a token mean over all ranks."""

    num_tokens: int
    num_ranks: int

    @property
    def scale(self) -> float:
        return self.num_ranks / self.num_tokens


class Method(Protocol):
    """A training algorithm."""

    def step(self, window: ExampleBatch) -> StepMetrics:
        """One optimizer step on all micro-batches of a window; all ranks call it together."""
        ...


@runtime_checkable
class StatefulMethod(Protocol):
    """An algorithm that remembers more between steps than its engines do; checkpoints keep that too."""

    def state_dict(self) -> dict[str, Any]:
        """What this rank remembers, in tensors, numbers, texts, and lists and dictionaries of them."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what the same rank had remembered; tensors come back on the CPU."""
        ...


@runtime_checkable
class ValidationFollower(Protocol):
    """An algorithm that adapts to the validation loss."""

    def follow_validation(self, loss: float) -> None:
        """Take note of a validation loss [nats per token]: before the first step, and whenever one is measured."""
        ...


def own_responses(window: ExampleBatch) -> PseudoTargets:
    """Ground truth, or fixed pseudo-targets."""
    return PseudoTargets(sequences=[example.with_response() for example in window.examples])


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """The sequences of a window on this rank, cut twice in one order, and the token mean over all ranks."""

    batches: Sequence[SequenceBatch]
    """Micro-batches, which go forward and backward."""
    passes: Sequence[SequenceBatch]
    """As few batches as memory allows, which go forward without gradient through a sharded model."""
    num_passes: int
    """As many on every rank: a sharded forward pass needs all ranks."""
    mean: TokenMean

    def __iter__(self) -> Iterator[tuple[SequenceBatch, bool]]:
        """Each micro-batch, and whether it is the last."""
        for index, batch in enumerate(self.batches):
            yield batch, index == len(self.batches) - 1

    def hidden(self, run: Callable[[SequenceBatch], Float[Tensor, "n H"]]) -> list[Float[Tensor, "N H"]]:
        """Hidden states of each micro-batch, from as few forward passes as possible."""
        states = [run(self.passes[min(index, len(self.passes) - 1)]) for index in range(self.num_passes)]
        # A rank with fewer passes than another repeats its last one for show.
        return self.split(torch.cat(states[: len(self.passes)]))

    def split(self, hidden: Float[Tensor, "N H"]) -> list[Float[Tensor, "n H"]]:
        """Hidden states of the window's response positions, in the order of the micro-batches, for each of them."""
        return list(hidden.split([batch.num_response_tokens for batch in self.batches]))


class Groundwork:
    """How methods cut windows, reduce losses and set learning rates."""

    def __init__(
        self, config: Config, *, vocabulary: SharedVocabulary, world: World, shards_teacher: bool = False
    ) -> None:
        self.world = world
        self._schedule = config.schedule
        self._vocabulary = vocabulary
        self._chunk_size = chunk_rows(vocabulary.size, byte_budget=config.engine.loss_chunk_mib * 2**20)
        # Long passes pad more; they pay only where each pass gathers a whole model.
        self._pass_tokens = config.engine.pass_tokens if shards_teacher else None

    def gather(self, student: Student, teacher: Teacher, *, stopwatch: Stopwatch) -> None:
        """Make those models whole that are gathered once for a window.

        First thing in a step: after the update before it the ranks are level, and none waits for another.
        """
        with stopwatch.time("student"):
            student.gather()
        with stopwatch.time("teacher"):
            teacher.gather()

    def plan(self, targets: PseudoTargets) -> WindowPlan:
        """Cut sequences of similar length into micro-batches and count the window's response tokens."""
        batches = self._collate(cut_micro_batches(targets.sequences, micro_batch=self._schedule.micro_batch))
        passes = batches
        if self._pass_tokens is not None:
            passes = self._collate(cut_passes(targets.sequences, max_tokens=self._pass_tokens))
        num_own_tokens = sum(batch.num_response_tokens for batch in batches)
        counts = self.world.gather_counts([num_own_tokens, len(passes)])
        num_tokens = sum(tokens for tokens, _ in counts)
        return WindowPlan(
            batches=batches,
            passes=passes,
            num_passes=max(num_passes for _, num_passes in counts),
            mean=TokenMean(num_tokens=num_tokens, num_ranks=self.world.size),
        )

    def loss(self, trained: Projection, terms: Sequence[Term], *, scale: float) -> FusedLoss:
        """Sum of the terms over the response positions of a micro-batch, times `scale`."""
        return fused_loss(
            trained, terms, vocabulary_size=self._vocabulary.size, scale=scale, chunk_size=self._chunk_size
        )

    def accumulate(
        self, plan: WindowPlan, terms: Sequence[Sequence[Term]], *, student: Student, ends_window: bool = True
    ) -> Float[Tensor, " terms"]:
        """Gradient to θ of the weighted terms' mean over a window's response tokens.

        Args:
            terms: those of each micro-batch, the same in number.
            ends_window: False where another gradient is added before the optimizer step.

        Returns:
            The sum of each unweighted term [nats] over this rank's response tokens.
        """
        sums = torch.zeros(len(terms[0]), device=self.device)
        for (batch, is_last), of_batch in zip(plan, terms, strict=True):

            def loss(trained: Projection, of_batch: Sequence[Term] = of_batch) -> FusedLoss:
                return self.loss(trained, of_batch, scale=plan.mean.scale)

            sums += student.accumulate(batch, loss, is_last=is_last and ends_window)
        return sums

    def finish(
        self,
        student: Student,
        *,
        learning_rate: float,
        num_tokens: int,
        token_sums: dict[str, Tensor],
        stopwatch: Stopwatch,
    ) -> StepMetrics:
        """Update θ with the window's gradient; returns what the whole step measured.

        Args:
            token_sums: as in `StepMetrics`.
        """
        with stopwatch.time("optimizer"):
            student.step(learning_rate=learning_rate)
        return StepMetrics(
            num_tokens=num_tokens,
            num_sequences=self.num_sequences,
            token_sums=token_sums,
            values={"learning_rate": learning_rate, "grad_norm": student.engine.grad_norm},
            stopwatch=stopwatch,
        )

    def skip(self, stopwatch: Stopwatch) -> StepMetrics:
        """What a step reports that met no response token, on any rank, and changed nothing."""
        return StepMetrics(num_tokens=0, num_sequences=self.num_sequences, stopwatch=stopwatch)

    def learning_rate(self, base: float, *, step: int) -> float:
        """The scheduled learning rate at `step`."""
        return base * learning_rate_factor(step, schedule=self._schedule)

    @property
    def num_sequences(self) -> int:
        return self._schedule.global_batch

    @property
    def device(self) -> torch.device:
        return self.world.device

    def _collate(self, cut: Sequence[Sequence[TokenSequence]]) -> list[SequenceBatch]:
        return [SequenceBatch.collate(rows, pad_id=self._vocabulary.pad_id, device=self.world.device) for rows in cut]
