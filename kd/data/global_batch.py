"""The global batch: the sequences of one optimizer step over all ranks, seen from one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from kd.data.batch import SequenceBatch, TokenSequence, split_by_rows, split_by_slots, split_by_tokens
from kd.distributed import World


class EmptyBatchError(Exception):
    """No rank has a response token in a global batch, so that there is no mean over its tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """Sequences that go forward and backward at a time on one rank."""

    batch: SequenceBatch
    tokens: slice
    """Its response tokens among those of the rank's share of the global batch."""
    num_tokens: int
    """Response tokens of the global batch on all ranks: the divisor of the mean."""
    loss_scale: float
    """Factor from a sum over tokens to this rank's part of the mean over the global batch's tokens.

    It is ranks / tokens, because DeepSpeed averages gradients over the ranks: the sum of all parts does not depend on
    the split into ranks and micro-batches.
    """

    @property
    def labels(self) -> Tensor:
        """Response tokens y_t [N]."""
        return self.batch.labels

    @property
    def token_indices(self) -> Tensor:
        """Index of each response token in its response [N]."""
        return self.batch.token_indices


@dataclass(frozen=True, kw_only=True, eq=False)
class GlobalBatch:
    """This rank's share of a global batch, in micro-batches and inference batches over the same order of tokens."""

    sequences: Sequence[TokenSequence]
    micro_batches: Sequence[MicroBatch]
    """As many on every rank."""
    inference_batches: Sequence[SequenceBatch]
    """As many on every rank, because a ZeRO-3 forward pass is collective: a rank with fewer repeats its last one."""
    num_own_inference_batches: int
    num_tokens: int
    """Response tokens on all ranks, at least one."""
    student_hidden: Mapping[int, Tensor] | None = None
    """By row id, the student's hidden states [n, H] that predicted each response token, if sampling kept them; those of
    a forward pass over the sequence, up to rounding."""

    @property
    def labels(self) -> Tensor:
        """Response tokens of this rank [N], in the order of the micro-batches."""
        return torch.cat([micro.labels for micro in self.micro_batches])

    @property
    def response_lengths(self) -> list[tuple[int, int]]:
        """Row ids of this rank with the lengths of their responses, in the order of the micro-batches."""
        batches = [micro.batch for micro in self.micro_batches]
        return [pair for batch in batches for pair in zip(batch.row_ids, batch.response_lengths, strict=True)]


@dataclass(frozen=True, kw_only=True)
class GlobalBatcher:
    """Makes global batches: pads, splits and counts the sequences of all ranks."""

    micro_batch: int
    """Sequences of a micro-batch."""
    micro_tokens: int | None = None
    """Slots of a micro-batch; with it, `micro_batch` has no effect."""
    packs: bool = False
    """Whether sequences are packed, not padded; a micro-batch then has `micro_tokens` tokens."""
    inference_batch_tokens: int | None
    """Padded slots of an inference batch; None for the micro-batches themselves, which have less padding and are better
    unless each forward pass gathers a model."""
    pad_id: int
    world: World

    def __call__(
        self, sequences: Sequence[TokenSequence], *, student_hidden: Mapping[int, Tensor] | None = None
    ) -> GlobalBatch:
        """The global batch of every rank's `sequences` (at least one each); all ranks call it together.

        Counting its tokens is the one host synchronisation of a step outside of rollouts.

        Raises:
            EmptyBatchError: on all ranks, when none has a response token.
        """
        batches = self._collate(self._split(sequences, max_slots=self.micro_tokens))
        inference = batches
        if self.inference_batch_tokens is not None:
            inference = self._collate(self._split(sequences, max_slots=self.inference_batch_tokens))
        own_tokens = sum(batch.num_response_tokens for batch in batches)
        counts = self.world.gather_counts([own_tokens, len(batches), len(inference)])
        num_tokens = sum(tokens for tokens, *_ in counts)
        if num_tokens == 0:
            raise EmptyBatchError
        num_missing = max(number for *_, number in counts) - len(inference)
        # A backward pass is collective too: a rank with fewer micro-batches adds some without a response token.
        num_dummies = max(number for _, number, _ in counts) - len(batches)
        if num_dummies:
            dummy = self._collate([[replace(sequences[0], response_ids=sequences[0].response_ids[:0])]])
            batches = batches + dummy * num_dummies
        ends = list(accumulate(batch.num_response_tokens for batch in batches))
        return GlobalBatch(
            sequences=sequences,
            micro_batches=[
                MicroBatch(
                    batch=batch,
                    tokens=slice(end - batch.num_response_tokens, end),
                    num_tokens=num_tokens,
                    loss_scale=self.world.size / num_tokens,
                )
                for batch, end in zip(batches, ends, strict=True)
            ],
            inference_batches=inference + inference[-1:] * num_missing,
            num_own_inference_batches=len(inference),
            num_tokens=num_tokens,
            student_hidden=student_hidden,
        )

    def _collate(self, parts: Sequence[Sequence[TokenSequence]]) -> list[SequenceBatch]:
        return [
            SequenceBatch.collate(rows, pad_id=self.pad_id, device=self.world.device, packed=self.packs)
            for rows in parts
        ]

    def _split(self, sequences: Sequence[TokenSequence], *, max_slots: int | None) -> list[list[TokenSequence]]:
        if max_slots is None:
            return split_by_rows(sequences, num_rows=self.micro_batch)
        if self.packs:
            return split_by_tokens(sequences, max_tokens=max_slots)
        return split_by_slots(sequences, max_slots=max_slots)
