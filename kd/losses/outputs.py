"""A model's outputs at the response positions: hidden states, and the head that turns them into logits when needed.

N response positions, n of them in a chunk, H hidden size, V shared vocabulary, V_padded rows of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES = 128 * 2**20
"""Default size of one [n, V] float32 tensor."""


@dataclass(frozen=True, kw_only=True)
class LogitMap:
    """From a head's values z to logits: cap · tanh(scale · z / cap), or scale · z without a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Logits from a head's values; these themselves where the map changes nothing."""
        scaled = values if self.scale == 1 else values * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap).mul_(self.cap)

    def derivative(self, logits: Tensor) -> Tensor | float:
        """d logit / d z at `logits`, of their shape, or one number for all."""
        if self.cap is None:
            return self.scale
        return (logits / self.cap).square_().neg_().add_(1).mul_(self.scale)


UNCHANGED = LogitMap()
"""The map of most families."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """An output head: weight [V_padded, H], bias [V_padded] or None, and the map from its values to logits.

    Under ZeRO-3 it must be gathered while logits are computed. Only its first `vocabulary_size` rows are read: the
    others are padding, or tokens that the other model does not have.
    """

    weight: Tensor
    bias: Tensor | None = None
    vocabulary_size: int
    logit_map: LogitMap = UNCHANGED

    def logits(self, values: Tensor) -> Tensor:
        """Logits of the head's values [n, V]; in `loss_dtype` where a map changes them, for it to round nothing."""
        return values if self.logit_map == UNCHANGED else self.logit_map(values.to(self.loss_dtype))

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for a float64 head, float32 for any other."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32


@runtime_checkable
class Positions(Protocol):
    """A part of a global batch: which of the rank's response tokens it has."""

    @property
    def tokens(self) -> slice: ...

    @property
    def token_indices(self) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Outputs:
    """Hidden states [N, H] and the head that reads them; logits exist for one chunk at a time."""

    hidden: Tensor
    head: Head
    token_indices: Tensor | None = None
    """[N], index of each token in its response, from 0; known for the outputs of a micro-batch."""

    def __len__(self) -> int:
        return len(self.hidden)

    def __getitem__(self, part: Positions) -> "Outputs":
        """The outputs of one micro-batch."""
        return replace(self, hidden=self.hidden[part.tokens], token_indices=part.token_indices)

    def head_values(self, rows: slice = slice(None)) -> Float[Tensor, "n V"]:
        """The head's values at the positions `rows`: logits before `Head.logits`, in its dtype, without gradient."""
        head, size = self.head, self.head.vocabulary_size
        weight = head.weight.detach()[:size]
        bias = None if head.bias is None else head.bias.detach()[:size]
        return functional.linear(self.hidden[rows].detach().to(weight.dtype), weight, bias)

    def log_probs(self, rows: slice = slice(None)) -> Float[Tensor, "n V"]:
        """Log-probabilities over the shared vocabulary at the positions `rows`, in nats and without gradient."""
        return functional.log_softmax(self.head.logits(self.head_values(rows)), dim=-1, dtype=self.head.loss_dtype)

    def token_log_probs(self, labels: Int64[Tensor, " N"], *, chunk_size: int | None = None) -> Float[Tensor, " N"]:
        """Log-probabilities of `labels` in nats, without gradient; `chunk_size` positions have logits at a time."""
        size = chunk_size or chunk_rows(self.head.vocabulary_size)
        values = torch.empty(len(self), dtype=self.head.loss_dtype, device=self.hidden.device)
        for rows in chunks(len(self), size=size):
            values[rows] = self.log_probs(rows).gather(-1, labels[rows].unsqueeze(-1)).squeeze(-1)
        return values

    def validate(self, *, role: str) -> None:
        """Raise ValueError, naming `role`, unless the shapes agree and the head covers the vocabulary."""
        hidden, weight, bias = self.hidden.shape, self.head.weight.shape, self.head.bias
        if len(hidden) != 2 or len(weight) != 2 or hidden[1] != weight[1]:
            raise ValueError(
                f"{role}: hidden states {list(hidden)} and head {list(weight)}, expected [N, H] and [V, H] "
                "(a head of no or one dimension is a ZeRO-3 partition that was not gathered)"
            )
        if bias is not None and bias.shape != weight[:1]:
            raise ValueError(f"{role}: bias {list(bias.shape)}, expected [{weight[0]}] like the head's rows")
        if not 1 <= self.head.vocabulary_size <= weight[0]:
            raise ValueError(
                f"{role}: a shared vocabulary of {self.head.vocabulary_size} entries, but the head has {weight[0]} rows"
            )


def chunk_rows(vocabulary_size: int, *, byte_budget: int = CHUNK_BYTES) -> int:
    """Rows, at least 1, for which one [rows, vocabulary_size] float32 tensor fits into `byte_budget`."""
    return max(1, byte_budget // (4 * vocabulary_size))


def chunks(num_rows: int, *, size: int) -> Iterator[slice]:
    """Consecutive slices of `num_rows` rows, of at most `size` each."""
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))
