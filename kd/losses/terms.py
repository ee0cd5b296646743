"""What the chunked loss is made of: projections of hidden states, and the terms that compare or score them.

N response positions, n rows of one chunk, H hidden size, V shared vocabulary, V_padded rows of a head.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from kd.losses.divergences import Divergence


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Hidden states [N, H] and the output head (weight [V_padded, H], bias [V_padded]) that reads them.

    Under ZeRO-3 the head must be gathered while `fused_loss` runs; at backward it need not be.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None

    @property
    def loss_dtype(self) -> torch.dtype:
        """float64 for a float64 head, float32 for any other."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def logits(self, rows: slice, *, vocabulary_size: int) -> Float[Tensor, "n V"]:
        """Logits of `rows` over the first `vocabulary_size` rows of the head, in the head's dtype."""
        weight = self.weight.detach()[:vocabulary_size]
        bias = None if self.bias is None else self.bias.detach()[:vocabulary_size]
        return functional.linear(self.hidden.detach()[rows].to(weight.dtype), weight, bias)

    def validate(self, *, role: str, vocabulary_size: int) -> None:
        """Raise ValueError, naming `role`, unless the shapes agree and the head covers the vocabulary."""
        hidden, weight = self.hidden.shape, self.weight.shape
        if len(hidden) != 2 or len(weight) != 2 or hidden[1] != weight[1]:
            raise ValueError(
                f"{role}: hidden states {list(hidden)} and head {list(weight)}, expected [N, H] and [V, H] "
                "(a head of no or one dimension is a ZeRO-3 shard that was not gathered)"
            )
        if self.bias is not None and self.bias.shape != weight[:1]:
            raise ValueError(f"{role}: bias {list(self.bias.shape)}, expected [{weight[0]}] like the head's rows")
        if not 1 <= vocabulary_size <= weight[0]:
            raise ValueError(
                f"{role}: a shared vocabulary of {vocabulary_size} entries, but the head has {weight[0]} rows"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """An output head in whole: weight [V_padded, H], bias [V_padded] or none."""

    weight: Tensor
    bias: Tensor | None

    def project(self, hidden: Float[Tensor, "N H"]) -> Projection:
        """The distributions that this head reads from `hidden`."""
        return Projection(hidden=hidden, weight=self.weight, bias=self.bias)


@runtime_checkable  # for beartype
class Term(Protocol):
    """One summand of the per-token loss."""

    @property
    def weight(self) -> float:
        """Factor of this summand; a summand of weight 0 is measured but has no part in loss and gradient."""
        ...

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        """Raise ValueError unless this summand covers exactly `num_rows` positions of that vocabulary."""
        ...

    @property
    def target(self) -> Projection | None:
        """The other model's distributions that this summand compares with, if it compares."""
        ...

    def per_token(self, log_probs: Tensor, target: Tensor | None, rows: slice) -> Tensor:
        """Nats [n] for the positions `rows`, differentiable in their log-probabilities [n, V].

        `target` has the log-probabilities [n, V] of `self.target` at these positions, if there is one.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class DivergenceTerm:
    """`divergence(trained, target)` in nats, a summand of Eq. 3 or 4; the target never gets a gradient."""

    divergence: Divergence
    target: Projection
    weight: float = 1.0

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        """Raise ValueError unless the target has `num_rows` positions and `vocabulary_size` head rows."""
        self.target.validate(role="target", vocabulary_size=vocabulary_size)
        if len(self.target.hidden) != num_rows:
            raise ValueError(f"target has {len(self.target.hidden)} positions, the trained model {num_rows}")

    def per_token(
        self, log_probs: Float[Tensor, "n V"], target: Float[Tensor, "n V"] | None, rows: slice
    ) -> Float[Tensor, " n"]:
        """Divergence in nats for the positions `rows`, given both log-probabilities [n, V]."""
        assert target is not None
        return self.divergence(log_probs, target)
