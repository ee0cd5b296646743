"""The losses in plain torch, the oracle of kd.losses: float64, full [N, V] tensors, autograd.

Nothing here is imported from kd, and no -inf is handled. p is the target's and q the trained model's distribution.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def plain_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    vocabulary_size: int,
    scale: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """Log-probabilities [N, V] in float64: logits of the head's first rows, minus their log-sum-exp."""
    logits = hidden.double() @ weight[:vocabulary_size].double().T
    if bias is not None:
        logits = logits + bias[:vocabulary_size].double()
    logits = logits * scale
    if cap is not None:
        logits = cap * (logits / cap).tanh()
    return logits - logits.exp().sum(dim=-1, keepdim=True).log()


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) in nats per row, from log-probabilities [..., V]."""
    return (p.exp() * (p - q)).sum(dim=-1)


def plain_jsd(p: Tensor, q: Tensor, *, beta: float) -> Tensor:
    """β·KL(p‖m) + (1 - β)·KL(q‖m) in nats per row, with m = β·p + (1 - β)·q."""
    m = (beta * p.exp() + (1 - beta) * q.exp()).log()
    return beta * plain_kl(p, m) + (1 - beta) * plain_kl(q, m)


def plain_skew_kl(p: Tensor, q: Tensor, *, alpha: float) -> Tensor:
    """KL(p‖α·p + (1 - α)·q) in nats per row."""
    return plain_kl(p, (alpha * p.exp() + (1 - alpha) * q.exp()).log())


def plain_skew_reverse_kl(p: Tensor, q: Tensor, *, alpha: float) -> Tensor:
    """KL(q‖(1 - α)·p + α·q) in nats per row."""
    return plain_kl(q, ((1 - alpha) * p.exp() + alpha * q.exp()).log())


def plain_total_variation(p: Tensor, q: Tensor) -> Tensor:
    """Half the sum of the differences, per row."""
    return (p.exp() - q.exp()).abs().sum(dim=-1) / 2


PLAIN_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": plain_kl,
    "reverse_kl": lambda p, q: plain_kl(q, p),
    "jsd": lambda p, q: plain_jsd(p, q, beta=0.5),
    "skew_kl": lambda p, q: plain_skew_kl(p, q, alpha=0.1),
    "skew_reverse_kl": lambda p, q: plain_skew_reverse_kl(p, q, alpha=0.1),
    "total_variation": plain_total_variation,
}
"""By the names of the configuration, with their usual β and α."""


def plain_cross_entropy(log_probs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) in nats per row."""
    return torch.stack([-row[label] for row, label in zip(log_probs, labels, strict=True)])
