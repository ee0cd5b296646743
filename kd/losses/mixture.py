"""KL to a mixture that the distribution is itself a part of: what JSD and the skew divergences are made of."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def kl_to_mixture(
    a: Float[Tensor, "*rows V"], b: Float[Tensor, "*rows V"], *, own_share: float
) -> Float[Tensor, "*rows"]:
    """KL(a ‖ w·a + (1 - w)·b) in nats, from log-probabilities, differentiable once in both; w = `own_share`.

    Between 0 and -log w, so finite also where b_v is 0. A column whose a_v is 0 (log a_v = -inf, or too small
    for the dtype) adds 0 to the value and to both gradients. Raises ValueError unless 0 < w < 1.
    """
    if not 0 < own_share < 1:
        raise ValueError(f"own_share is {own_share}, expected a number between 0 and 1")
    divergence: Tensor = _KLToMixture.apply(a, b, own_share)  # type: ignore[no-untyped-call]
    return divergence


class _KLToMixture(torch.autograd.Function):
    """Everything is a function of d = log b - log a: no mixture is formed that could underflow."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, own_share: float) -> Tensor:
        probability = a.exp()
        # Asked of the probability, not of log a: where both are -inf, d is not a number.
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
