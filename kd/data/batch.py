"""Rows of token ids, and the padded tensors of a batch.

Masks and positions come from lengths, never from token ids: a padding id may also be the end-of-sequence id. They
are computed on the host, so that building a batch never synchronises with a device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

TokenIds = npt.NDArray[np.int32]
"""Token ids of one text, one-dimensional, on the host."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptRow:
    """A row with a prompt in tokens."""

    row_id: int
    prompt_ids: TokenIds


Row = TypeVar("Row", bound=PromptRow)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenSequence(PromptRow):
    """A prompt, which is not empty because its end predicts the first response token, and a response, which may be."""

    response_ids: TokenIds

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise ValueError(f"row {self.row_id} has an empty prompt")

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)

    def state_dict(self) -> dict[str, Any]:
        """The sequence for a checkpoint."""
        prompt, response = torch.from_numpy(self.prompt_ids), torch.from_numpy(self.response_ids)
        return {"row_id": self.row_id, "prompt_ids": prompt, "response_ids": response}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "TokenSequence":
        """The sequence of a `state_dict`."""
        prompt, response = state["prompt_ids"].numpy(), state["response_ids"].numpy()
        return cls(row_id=state["row_id"], prompt_ids=prompt, response_ids=response)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptBatch:
    """Prompts to continue, padded on the left so that all of them end in the last slot."""

    input_ids: Int64[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    row_ids: tuple[int, ...]
    lengths: tuple[int, ...]
    """Tokens of each prompt."""

    @classmethod
    def collate(cls, rows: Sequence[PromptRow], *, pad_id: int, device: torch.device) -> "PromptBatch":
        """Pad the prompts of `rows` (at least one) to the longest of them."""
        lengths = tuple(len(row.prompt_ids) for row in rows)
        width = max(lengths)
        mask = np.arange(width) >= width - np.array(lengths)[:, None]
        input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
        input_ids[mask] = np.concatenate([row.prompt_ids for row in rows])
        return cls(
            input_ids=torch.from_numpy(input_ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            row_ids=tuple(row.row_id for row in rows),
            lengths=lengths,
        )

    @property
    def position_ids(self) -> Int64[Tensor, "B T"]:
        """Positions that count from 0 at the first real slot; padding slots have 0."""
        return (self.attention_mask.cumsum(dim=1) - 1).clamp_min(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceBatch:
    """Prompts with their responses, and the slots that predict the response tokens.

    Each sequence has a row of its own, padded on the right; or all of them are packed into one row without padding. N
    counts the response tokens of the batch, sequence after sequence; it may be 0.
    """

    input_ids: Int64[Tensor, "B T"]
    packed_lengths: tuple[int, ...] | None
    """Tokens of each packed sequence; None if they are padded."""
    response_positions: Int64[Tensor, " N"]
    """Indices into the flattened [B*T] hidden states: the slot before that of y_t predicts y_t."""
    labels: Int64[Tensor, " N"]
    """The response tokens y_t."""
    token_indices: Int64[Tensor, " N"]
    """Index of each response token in its response, from 0."""
    sequence_indices: Int64[Tensor, " N"]
    """Index of each response token's sequence in the batch, from 0."""
    row_ids: tuple[int, ...]
    response_lengths: tuple[int, ...]

    @classmethod
    def collate(
        cls, rows: Sequence[TokenSequence], *, pad_id: int, device: torch.device, packed: bool = False
    ) -> "SequenceBatch":
        """Pad `rows` (at least one) to the longest of them, or pack them."""
        lengths = np.array([row.num_tokens for row in rows])[:, None]
        starts = np.array([len(row.prompt_ids) for row in rows])[:, None]
        slots = np.arange(lengths.max())
        mask = slots < lengths
        in_response = mask & (slots >= starts)
        input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
        input_ids[mask] = np.concatenate([ids for row in rows for ids in (row.prompt_ids, row.response_ids)])
        labels = input_ids[in_response]
        if packed:
            # Row after row, as the mask selects them.
            input_ids, is_label = input_ids[mask][None], in_response[mask]
        else:
            is_label = in_response.reshape(-1)
        indices = np.broadcast_to(np.arange(len(rows))[:, None], mask.shape)
        return cls(
            input_ids=torch.from_numpy(input_ids).to(device),
            packed_lengths=tuple(row.num_tokens for row in rows) if packed else None,
            response_positions=torch.from_numpy(np.flatnonzero(is_label) - 1).to(device),
            labels=torch.from_numpy(labels).to(device),
            token_indices=torch.from_numpy((slots - starts)[in_response]).to(device),
            sequence_indices=torch.from_numpy(indices[in_response]).to(device),
            row_ids=tuple(row.row_id for row in rows),
            response_lengths=tuple(len(row.response_ids) for row in rows),
        )

    @property
    def attention_mask(self) -> Bool[Tensor, "B T"] | None:
        """True also on padding: a causal model's real slots do not see what stands on their right.

        A mask with padding would keep attention from its causal kernels. None for packed sequences, which positions
        separate.
        """
        return None if self.packed_lengths is not None else torch.ones_like(self.input_ids, dtype=torch.bool)

    @property
    def position_ids(self) -> Int64[Tensor, "B T"] | None:
        """Positions that restart with each packed sequence; None for padded ones, which have the model's own."""
        return None if self.packed_lengths is None else restarting(self.packed_lengths, device=self.input_ids.device)

    @property
    def num_response_tokens(self) -> int:
        """N, known on the host."""
        return sum(self.response_lengths)

    def shifted_positions(self, num_slots: int) -> Int64[Tensor, " N"]:
        """`response_positions` where M = `num_slots` soft prompt slots precede each sequence."""
        return self.response_positions + (self.sequence_indices + 1) * num_slots


def restarting(lengths: Sequence[int], *, device: torch.device) -> Int64[Tensor, "1 T"]:
    """0, 1, … for each of the `lengths`, one after the other."""
    return torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])[None]).to(device)


def split_by_rows(rows: Sequence[TokenSequence], *, num_rows: int) -> list[list[TokenSequence]]:
    """Sort `rows` by length, longest first, and split them into lists of `num_rows` (the last may be shorter).

    The longest come first, so that a global batch which does not fit into memory fails at its beginning.
    """
    ordered = sorted(rows, key=lambda row: row.num_tokens, reverse=True)
    return [ordered[start : start + num_rows] for start in range(0, len(ordered), num_rows)]


def split_by_slots(rows: Sequence[TokenSequence], *, max_slots: int) -> list[list[TokenSequence]]:
    """Split `rows`, in the order of `split_by_rows`, into lists of at most `max_slots` padded slots or of one row."""
    return _split(rows, num_slots=lambda row: row.num_tokens, max_slots=max_slots)


def split_by_tokens(rows: Sequence[TokenSequence], *, max_tokens: int) -> list[list[TokenSequence]]:
    """Split `rows`, in the order of `split_by_rows`, into lists of at most `max_tokens` tokens or of one row."""
    batches: list[list[TokenSequence]] = []
    room = 0
    for row in sorted(rows, key=lambda row: row.num_tokens, reverse=True):
        if not batches or row.num_tokens > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(row)
        room -= row.num_tokens
    return batches


def split_prompts(rows: Sequence[Row], *, slots_per_row: int, max_batch_tokens: int) -> list[list[Row]]:
    """Split `rows` like `split_by_slots`; beside its prompt, a row takes `slots_per_row`: new tokens, soft prompt."""
    return _split(rows, num_slots=lambda row: len(row.prompt_ids) + slots_per_row, max_slots=max_batch_tokens)


def _split(rows: Sequence[Row], *, num_slots: Callable[[Row], int], max_slots: int) -> list[list[Row]]:
    """Split `rows`, longest first, into lists whose padded size is at most `max_slots`."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=num_slots, reverse=True):
        # The first row of a batch is its longest.
        if batches and (len(batches[-1]) + 1) * num_slots(batches[-1][0]) <= max_slots:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
