"""Divergences between next-token distributions: pure, per token, on log-probabilities, in nats.

The caller reduces over tokens. Pass float32 or float64 tensors: nothing is widened here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Divergence: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(trained, target) log-probabilities [..., V] -> nats per token [...]; may be differentiable in both."""

DivergenceName = Literal["reverse_kl", "forward_kl"]


def kl(p: Float[Tensor, "*rows V"], q: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows"]:
    """KL(p‖q) = Σ_v p_v (log p_v - log q_v) in nats, from log-probabilities, differentiable once in both.

    A column whose p_v is 0 (log p_v = -inf, or too small for the dtype) adds 0 to the value and to both
    gradients, whatever q_v is; q_v = 0 where p_v > 0 gives +inf.
    """
    divergence: Tensor = _KL.apply(p, q)  # type: ignore[no-untyped-call]
    return divergence


def reverse_kl(trained: Float[Tensor, "*rows V"], target: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows"]:
    """KL(trained‖target) in nats: mode-seeking for the model being trained (Eq. 1, 2 and 4)."""
    return kl(trained, target)


def forward_kl(trained: Float[Tensor, "*rows V"], target: Float[Tensor, "*rows V"]) -> Float[Tensor, "*rows"]:
    """KL(target‖trained) in nats: mass-covering for the model being trained (not in the paper's method)."""
    return kl(target, trained)


DIVERGENCES: Mapping[DivergenceName, Divergence] = {"reverse_kl": reverse_kl, "forward_kl": forward_kl}
"""What a configuration may name."""


class _KL(torch.autograd.Function):
    """The closed form of both gradients.

    Composed from torch operations the same formula keeps about twice as many [..., V] tensors alive, and
    these tensors are what limits the chunk size of the chunked loss.
    """

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(p, q)
        probability = p.exp()
        return _log_ratio(p, q, probability).mul_(probability).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None]:
        p, q = ctx.saved_tensors
        grad = grad_outputs[0].unsqueeze(-1)
        probability = p.exp()
        grad_p = grad_q = None
        if ctx.needs_input_grad[0]:
            grad_p = _log_ratio(p, q, probability).add_(1).mul_(probability).mul_(grad)
        if ctx.needs_input_grad[1]:
            grad_q = probability.mul_(grad).neg_()
        return grad_p, grad_q


def _log_ratio(p: Tensor, q: Tensor, probability: Tensor) -> Tensor:
    # Asked of the probability, not of log p: a p that underflows would otherwise meet q = 0 as 0 · inf.
    return (p - q).masked_fill_(probability == 0, 0)
