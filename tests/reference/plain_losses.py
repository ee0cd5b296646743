"""The losses written down plainly, as the oracle of kd.losses: float64, whole [N, V] tensors, autograd.

Nothing here is imported from kd, and no -inf is handled.
"""

import torch
from torch import Tensor


def plain_log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, vocabulary_size: int) -> Tensor:
    """Log-probabilities [N, V] in float64: logits of the head's first rows, minus their log-sum-exp."""
    logits = hidden.double() @ weight[:vocabulary_size].double().T
    if bias is not None:
        logits = logits + bias[:vocabulary_size].double()
    return logits - logits.exp().sum(dim=-1, keepdim=True).log()


def plain_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p‖q) in nats per row, from log-probabilities [..., V]."""
    return (p.exp() * (p - q)).sum(dim=-1)


def plain_cross_entropy(log_probs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label) in nats per row."""
    return torch.stack([-row[label] for row, label in zip(log_probs, labels, strict=True)])
