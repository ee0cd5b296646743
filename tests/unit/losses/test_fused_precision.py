"""The fused loss in low precision: bfloat16 and float16 inputs, extreme logits, loss scales, autocast."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kd.losses.divergences import DIVERGENCES
from kd.losses.fused import fused_loss
from kd.losses.outputs import Outputs
from kd.losses.terms import cross_entropy
from tests.unit.losses.problems import (
    assert_same,
    differentiate,
    divergence_term,
    make_outputs,
    oracle,
    solve,
    tensors,
)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bfloat16_matches_the_oracle_to_its_precision(name: str) -> None:
    trained = make_outputs(seed=0, dtype=torch.bfloat16)
    term = divergence_term(make_outputs(seed=1, dtype=torch.bfloat16), name=name)
    ours = solve(trained, term, scale=0.1)
    assert ours.loss.dtype == ours.term_sums.dtype == torch.float32
    assert [gradient.dtype for gradient in ours.gradients] == [torch.bfloat16] * 2
    assert_same(ours, oracle(trained, term, scale=0.1), rtol=3e-2, atol=1e-2)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_huge_bfloat16_logits_stay_finite(name: str) -> None:
    """Logits of ±100,000: every probability but one is 0 in float32, and log p is far below its range."""
    trained, target = (
        replace(outputs, hidden=(2e4 * outputs.hidden.detach()).requires_grad_())
        for outputs in (make_outputs(seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    )
    ours = solve(trained, divergence_term(target, name=name), scale=1.0)
    p, q = (outputs.head_values().double().log_softmax(-1) for outputs in (trained, target))
    assert p.min() < -1e5 and p.exp().float().count_nonzero() == len(p)
    assert ours.loss.item() == pytest.approx(DIVERGENCES[name](p, q).sum().item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in ours.gradients)


def test_head_gradient_is_summed_in_float32_over_the_chunks() -> None:
    """512 equal chunks: a bfloat16 sum would stop growing at 256 times its summands."""
    rows = 512
    trained = make_outputs(seed=0, rows=1, dtype=torch.bfloat16)
    trained = replace(trained, hidden=trained.hidden.detach().expand(rows, -1).clone().requires_grad_())
    term = cross_entropy(torch.zeros(rows, dtype=torch.int64))
    many, one = (solve(trained, term, scale=1.0, chunk_size=size).gradients[1] for size in (1, rows))
    torch.testing.assert_close(many, one, rtol=1e-2, atol=1e-2)
    assert many.abs().max() > 256


def test_a_loss_scale_rescues_gradients_below_the_range_of_float16() -> None:
    """scale alone (1 / tokens) makes every float16 gradient 0; the loss scale arrives before the rounding."""
    loss_scale, scale = 2.0**24, 2.0**-26
    trained = make_outputs(seed=0)
    half = replace(trained, hidden=trained.hidden.detach().half().requires_grad_())
    widened = replace(trained, hidden=half.hidden.detach().float().requires_grad_())

    def hidden_gradient(outputs: Outputs, *, scale: float, factor: float) -> Tensor:
        loss = fused_loss(outputs, [divergence_term(make_outputs(seed=1))], scale=scale, chunk_size=4).loss
        return torch.autograd.grad(loss, outputs.hidden, torch.tensor(factor))[0]

    reference = hidden_gradient(widened, scale=scale * loss_scale, factor=1.0)
    assert (reference * scale / loss_scale).half().abs().max() == 0
    scaled = hidden_gradient(half, scale=scale, factor=loss_scale)
    assert scaled.dtype == torch.float16
    torch.testing.assert_close(scaled.float(), reference, rtol=2e-3, atol=1e-6)
    assert hidden_gradient(half, scale=1.0, factor=loss_scale).isinf().any()  # the overflow the scaler looks for


def test_autocast_changes_nothing() -> None:
    trained, terms = make_outputs(seed=0), [divergence_term(make_outputs(seed=1))]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            result = fused_loss(trained, terms, scale=1.0, chunk_size=4)
        results.append(differentiate(result, tensors(trained)))
    assert_same(*results, rtol=0, atol=0)


class TensorCores(TorchDispatchMode):
    """Rounds the operands of float32 GEMMs to TF32 while torch would let CUDA do so."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rounded = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.addmm_.default and torch.backends.cuda.matmul.allow_tf32:
            self.num_rounded += 1
            args = (args[0], *(to_tf32(tensor) for tensor in args[1:]))
        return func(*args, **(kwargs or {}))


def to_tf32(values: Tensor) -> Tensor:
    """`values`, rounded to 10 of float32's 23 bits of fraction."""
    assert values.dtype == torch.float32
    return ((values.contiguous().view(torch.int32) + 2**12) & ~(2**13 - 1)).view(torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tf32_in_the_heads_gradient_costs_less_than_the_final_rounding(dtype: torch.dtype) -> None:
    """Of half precision; nothing of float32 is rounded. Compared with float64, from the same logits."""
    size = {"rows": 256, "vocabulary": 500, "hidden_size": 16, "dtype": dtype}
    trained, target = make_outputs(seed=0, **size), make_outputs(seed=1, **size, trainable=False)
    term, before = divergence_term(target), torch.backends.cuda.matmul.allow_tf32
    with TensorCores() as tensor_cores:
        ours = solve(trained, term, scale=1 / 256, chunk_size=64).gradients[1].double()
    assert tensor_cores.num_rounded == (0 if dtype == torch.float32 else 4)
    assert torch.backends.cuda.matmul.allow_tf32 == before
    p, q = (outputs.head_values().double().requires_grad_() for outputs in (trained, target))
    (grad_logits,) = torch.autograd.grad(DIVERGENCES["reverse_kl"](p.log_softmax(-1), q.log_softmax(-1)).sum(), p)
    expected = grad_logits.T @ trained.hidden.detach().double() / 256
    final_rounding = (expected.to(dtype) - expected).norm() / expected.norm()
    error = (ours - expected).norm() / expected.norm()
    # float32's own rounding differs between CPUs; TF32's would be 1e-4.
    assert 0.5 * final_rounding < error < 1.5 * final_rounding + 1e-5
