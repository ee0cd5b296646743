"""Loss terms: the weighted summands of the per-token loss.

`kl(p, q)` is KL(p‖q). `TRAINED` stands for the model that the loss is differentiated for:
`kl(TRAINED, teacher[micro])` is KL(q‖p) and `kl(teacher[micro], TRAINED)` is KL(p‖q). The argument order is the only
place where a direction appears.

N response positions, n of them in a chunk, V shared vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from kd.losses.divergences import Divergence, forward_kl, reverse_kl
from kd.losses.outputs import Outputs

TermType = TypeVar("TermType", bound="Term")

TargetTransform = Callable[[Tensor, Tensor], Tensor]
"""(log p of the target, log q of the trained model) [n, V] -> log r [n, V], the distribution to learn from instead.

log r is normalised, such as an interpolation between both; no gradient flows through it.
"""

TokenWeight = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log p of the target, log q of the trained model [n, V], index in the response [n]) -> weights w [n].

No gradient flows through the weights. They scale each token's divergence; the mean still divides by all tokens.
"""


class Trained:
    """The model being trained, in a loss term; its outputs exist in the engine's forward pass only."""


TRAINED = Trained()


@dataclass(frozen=True, kw_only=True, eq=False)
class Term(ABC):
    """One weighted summand of the per-token loss; `2 * term` is the term with twice the weight."""

    weight: float = 1.0
    """A term of weight 0 is measured without a part in loss and gradient."""
    target: Outputs | None = None
    """The other model's outputs, if the term compares with a distribution."""

    def __rmul__(self: TermType, factor: float) -> TermType:
        return replace(self, weight=factor * self.weight)

    @abstractmethod
    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        """Raise ValueError unless this term covers exactly `num_rows` positions of that vocabulary."""

    @abstractmethod
    def per_token(
        self, log_probs: Float[Tensor, "n V"], target: Float[Tensor, "n V"] | None, rows: slice
    ) -> Float[Tensor, " n"]:
        """Nats for the positions `rows`, differentiable in the trained model's `log_probs`.

        `target` has the log-probabilities of `self.target` at these positions, if there is one.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class DivergenceTerm(Term):
    """`divergence(trained, target)` in nats, as in Eq. 3 and 4; the target never gets a gradient.

    Two functions extend it to other methods: `transform` replaces the target's distribution, `token_weight` weighs
    the tokens.
    """

    divergence: Divergence
    # Required, unlike in the base class.
    target: Outputs = field()
    transform: TargetTransform | None = None
    token_weight: TokenWeight | None = None

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        self.target.validate(role="target")
        if len(self.target) != num_rows:
            raise ValueError(f"target has {len(self.target)} positions, the trained model {num_rows}")
        if self.target.head.vocabulary_size != vocabulary_size:
            raise ValueError(
                f"target has a vocabulary of {self.target.head.vocabulary_size}, the trained model {vocabulary_size}"
            )
        if self.token_weight is not None and self.target.token_indices is None:
            raise ValueError("a token weight needs the outputs of a micro-batch, which know the tokens' indices")

    def per_token(
        self, log_probs: Float[Tensor, "n V"], target: Float[Tensor, "n V"] | None, rows: slice
    ) -> Float[Tensor, " n"]:
        assert target is not None
        learned = target if self.transform is None else self.transform(target, log_probs.detach()).detach()
        values = self.divergence(log_probs, learned)
        if self.token_weight is None:
            return values
        assert self.target.token_indices is not None
        return values * self.token_weight(target, log_probs.detach(), self.target.token_indices[rows]).detach()


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossEntropyTerm(Term):
    """Negative log-likelihood in nats of `labels` [N] (int64, each below the shared vocabulary's size).

    The range of the labels is not checked: that would synchronise with the device in every step.
    """

    labels: Tensor

    def validate(self, *, num_rows: int, vocabulary_size: int) -> None:
        if self.labels.shape != (num_rows,) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}, expected torch.int64 "
                f"[{num_rows}]: one label for each response position"
            )

    def per_token(self, log_probs: Float[Tensor, "n V"], target: Tensor | None, rows: slice) -> Float[Tensor, " n"]:
        # gather instead of nll_loss: an ignore index would drop tokens that the caller has counted.
        return -log_probs.gather(-1, self.labels[rows].unsqueeze(-1)).squeeze(-1)


def kl(p: Outputs | Trained, q: Outputs | Trained) -> DivergenceTerm:
    """KL(p‖q) in nats per token, where exactly one of both is `TRAINED`.

    Raises:
        TypeError: both or none of them are `TRAINED`.
    """
    if isinstance(p, Trained) and isinstance(q, Outputs):
        return DivergenceTerm(divergence=reverse_kl, target=q)
    if isinstance(p, Outputs) and isinstance(q, Trained):
        return DivergenceTerm(divergence=forward_kl, target=p)
    raise TypeError("kl(p, q) takes TRAINED and the outputs of one model")


def cross_entropy(labels: Int64[Tensor, " N"]) -> CrossEntropyTerm:
    """-log q(y_t) in nats per token of `labels`."""
    return CrossEntropyTerm(labels=labels)
