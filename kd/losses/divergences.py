"""Divergences between next-token distributions: pure, per token, on log-probabilities, in nats.

The caller reduces over tokens. Pass float32 or float64 tensors: nothing is widened here.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

LogProbs: TypeAlias = Float[Tensor, "*rows V"]
Nats: TypeAlias = Float[Tensor, "*rows"]

Divergence: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(trained, target) log-probabilities [..., V] -> nats per token [...]; may be differentiable in both."""

DivergenceName = Literal["reverse_kl", "forward_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"]


def kl(p: LogProbs, q: LogProbs) -> Nats:
    """KL(p‖q) = Σ_v p_v (log p_v - log q_v) in nats, from log-probabilities, differentiable once in both.

    A column whose p_v is 0 (log p_v = -inf, or too small for the dtype) adds 0 to the value and to both
    gradients, whatever q_v is; q_v = 0 where p_v > 0 gives +inf.
    """
    return _KL.apply(p, q)  # type: ignore[no-any-return, no-untyped-call]


def reverse_kl(trained: LogProbs, target: LogProbs) -> Nats:
    """KL(trained‖target) in nats: mode-seeking for the model being trained (Eq. 1, 2 and 4)."""
    return kl(trained, target)


def forward_kl(trained: LogProbs, target: LogProbs) -> Nats:
    """KL(target‖trained) in nats: mass-covering for the model being trained (not in the paper's method)."""
    return kl(target, trained)


def kl_to_mixture(a: LogProbs, b: LogProbs, *, own_share: float) -> Nats:
    """KL(a ‖ w·a + (1 - w)·b) in nats, from log-probabilities, differentiable once in both; w = `own_share`.

    Between 0 and -log w, so finite also where b_v is 0. A column whose a_v is 0 (log a_v = -inf, or too small
    for the dtype) adds 0 to the value and to both gradients. Raises ValueError unless 0 < w < 1.
    """
    if not 0 < own_share < 1:
        raise ValueError(f"own_share is {own_share}, expected a number between 0 and 1")
    return _KLToMixture.apply(a, b, own_share)  # type: ignore[no-any-return, no-untyped-call]


def jsd(trained: LogProbs, target: LogProbs, *, beta: float = 0.5) -> Nats:
    """JSD(β) = β·KL(p‖m) + (1 - β)·KL(q‖m) in nats, m = β·p + (1 - β)·q, p the target (GKD, arXiv 2306.13649).

    It vanishes at both ends of β; its quotients by β and 1 - β do not: β = 0 stands for KL(p‖q), β = 1 for KL(q‖p).
    """
    if beta == 0:
        return forward_kl(trained, target)
    if beta == 1:
        return reverse_kl(trained, target)
    from_target = kl_to_mixture(target, trained, own_share=beta)
    from_trained = kl_to_mixture(trained, target, own_share=1 - beta)
    return beta * from_target + (1 - beta) * from_trained


def skew_kl(trained: LogProbs, target: LogProbs, *, alpha: float = 0.1) -> Nats:
    """KL(p‖α·p + (1 - α)·q) in nats, p the target (DistiLLM, arXiv 2402.03898); α = 0 is forward KL."""
    return kl_to_mixture(target, trained, own_share=alpha) if alpha else forward_kl(trained, target)


def skew_reverse_kl(trained: LogProbs, target: LogProbs, *, alpha: float = 0.1) -> Nats:
    """KL(q‖(1 - α)·p + α·q) in nats, p the target (DistiLLM, arXiv 2402.03898); α = 0 is reverse KL."""
    return kl_to_mixture(trained, target, own_share=alpha) if alpha else reverse_kl(trained, target)


def total_variation(trained: LogProbs, target: LogProbs) -> Nats:
    """½ Σ_v |p_v - q_v|, between 0 and 1; its gradient at p_v = q_v is 0."""
    return (trained.exp() - target.exp()).abs().sum(-1) / 2


DIVERGENCES: Mapping[DivergenceName, Divergence] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "jsd": jsd,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "total_variation": total_variation,
}
"""What a configuration may name, with the usual β and α."""


def make_divergence(name: DivergenceName, *, beta: float, alpha: float, temperature: float = 1.0) -> Divergence:
    """The divergence of this name: `beta` is for jsd, `alpha` for the two skew ones, `temperature` for all of them."""
    parametrised: dict[DivergenceName, Divergence] = {
        "jsd": partial(jsd, beta=beta),
        "skew_kl": partial(skew_kl, alpha=alpha),
        "skew_reverse_kl": partial(skew_reverse_kl, alpha=alpha),
    }
    return at_temperature(parametrised.get(name, DIVERGENCES[name]), temperature)


def at_temperature(divergence: Divergence, temperature: float) -> Divergence:
    """`divergence` between softmax(logits / T) of both models, from their log-probabilities at T = 1."""
    if temperature == 1:
        return divergence

    def tempered(trained: Tensor, target: Tensor) -> Tensor:
        return divergence((trained / temperature).log_softmax(-1), (target / temperature).log_softmax(-1))

    return tempered


class _KL(torch.autograd.Function):
    """Both gradients in closed form; composed of torch operations they make and read twice as many [..., V] tensors."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor) -> Tensor:
        probability = p.exp()
        # Masked by the probability, not by log p: a p that underflows would otherwise meet q = 0 as 0 · inf.
        ratio = (p - q).masked_fill_(probability == 0, 0)
        ctx.save_for_backward(probability, ratio if ctx.needs_input_grad[0] else None)
        return (ratio * probability).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None]:
        probability, ratio = ctx.saved_tensors
        grad = grad_outputs[0].unsqueeze(-1)
        grad_p = grad_q = None
        if ctx.needs_input_grad[0]:
            grad_p = (ratio + 1).mul_(probability).mul_(grad)
        if ctx.needs_input_grad[1]:
            grad_q = (probability * grad).neg_()
        return grad_p, grad_q


class _KLToMixture(torch.autograd.Function):
    """Everything is a function of d = log b - log a: no mixture is formed that could underflow."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, own_share: float) -> Tensor:
        probability = a.exp()
        # Masked by the probability, not by log a: where both are -inf, d is not a number.
        difference = (b - a).masked_fill_(probability == 0, 0)
        log_own, log_other = math.log(own_share), math.log1p(-own_share)
        # log a - log m = -log(w + (1 - w) e^d)
        ratio = torch.logaddexp(difference + log_other, difference.new_tensor(log_own)).neg_()
        # (1 - w) b / m, the other distribution's part of the mixture.
        others_part = difference.add_(log_other - log_own).sigmoid_()
        ctx.save_for_backward(probability, others_part, ratio if ctx.needs_input_grad[0] else None)
        return (ratio * probability).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, Tensor | None, None]:
        probability, others_part, ratio = ctx.saved_tensors
        grad = grad_outputs[0].unsqueeze(-1)
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_a = (ratio + others_part).mul_(probability).mul_(grad)
        if ctx.needs_input_grad[1]:
            grad_b = (probability * others_part).mul_(grad).neg_()
        return grad_a, grad_b, None
