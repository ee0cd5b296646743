"""What every method is made of: a window in, one optimizer step, measurements out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from kd.config import Config
from kd.data.batch import SequenceBatch, TokenSequence, cut_micro_batches
from kd.data.loader import Window
from kd.distributed import World
from kd.engines.optimization import learning_rate_factor
from kd.engines.reduction import TokenMean, count_response_tokens
from kd.engines.vocabulary import SharedVocabulary
from kd.losses.linear_divergence import LinearDivergence, Projection, Term, chunk_rows, linear_divergence
from kd.measurement import StepMetrics

Targets = Callable[[Window], list[TokenSequence]]
"""The sequences to learn from: sampled for the window, or the rows' own responses."""


class Method(Protocol):
    """A training algorithm."""

    def step(self, window: Window) -> StepMetrics:
        """One optimizer step on all micro-batches of a window; all ranks call it together."""
        ...


def own_responses(window: Window) -> list[TokenSequence]:
    """Ground truth, or fixed pseudo-targets."""
    return [example.with_response() for example in window.examples]


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """The micro-batches of a window on this rank, and the token mean over all ranks."""

    batches: Sequence[SequenceBatch]
    mean: TokenMean

    def __iter__(self) -> Iterator[tuple[SequenceBatch, bool]]:
        """Each micro-batch, and whether it is the last."""
        for index, batch in enumerate(self.batches):
            yield batch, index == len(self.batches) - 1


class Groundwork:
    """How methods cut windows, reduce losses and set learning rates."""

    def __init__(self, config: Config, *, vocabulary: SharedVocabulary, world: World) -> None:
        self.world = world
        self._schedule = config.schedule
        self._vocabulary = vocabulary
        self._chunk_size = chunk_rows(vocabulary.size, byte_budget=config.engine.loss_chunk_mib * 2**20)

    def plan(self, targets: Sequence[TokenSequence]) -> WindowPlan:
        """Cut sequences of similar length into micro-batches and count the window's response tokens."""
        batches = [
            SequenceBatch.collate(rows, pad_id=self._vocabulary.pad_id, device=self.world.device)
            for rows in cut_micro_batches(targets, micro_batch=self._schedule.micro_batch)
        ]
        num_tokens = count_response_tokens(batches, world=self.world)
        return WindowPlan(batches=batches, mean=TokenMean(num_tokens=num_tokens, num_ranks=self.world.size))

    def loss(self, trained: Projection, terms: Sequence[Term], *, scale: float) -> LinearDivergence:
        """Sum of the terms over the response positions of a micro-batch, times `scale`."""
        return linear_divergence(
            trained, terms, vocabulary_size=self._vocabulary.size, scale=scale, chunk_size=self._chunk_size
        )

    def learning_rate(self, base: float, *, step: int) -> float:
        """The scheduled learning rate at `step`."""
        return base * learning_rate_factor(step, schedule=self._schedule)

    @property
    def num_sequences(self) -> int:
        return self._schedule.global_batch

    @property
    def device(self) -> torch.device:
        return self.world.device
