"""The chunked loss in low precision: bfloat16 and float16 inputs, extreme logits, loss scales, autocast."""

from dataclasses import replace

import pytest
import torch

from kd.losses.divergences import DIVERGENCES
from kd.losses.fused import fused_loss
from kd.losses.likelihood import LikelihoodTerm
from tests.unit.losses.problems import (
    DIRECTIONS,
    VOCABULARY,
    answer,
    assert_same,
    divergence_term,
    oracle,
    projection,
    tensors,
)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_bfloat16_matches_the_oracle_to_its_precision(name: str) -> None:
    trained = projection(seed=0, dtype=torch.bfloat16)
    terms = [divergence_term(projection(seed=1, dtype=torch.bfloat16), name=name)]
    ours = answer(
        fused_loss(trained, terms, vocabulary_size=VOCABULARY, scale=0.1, chunk_size=3),
        tensors(trained),
    )
    assert ours.loss.dtype == ours.term_sums.dtype == torch.float32
    assert [gradient.dtype for gradient in ours.gradients] == [torch.bfloat16] * 2
    assert_same(ours, oracle(trained, terms, vocabulary_size=VOCABULARY, scale=0.1), rtol=3e-2, atol=1e-2)


@pytest.mark.parametrize("name", DIRECTIONS)
def test_huge_bfloat16_logits_stay_finite(name: str) -> None:
    """Logits of ±100,000: every probability but one is 0 in float32, and log p is far below its range."""
    trained = projection(seed=0, dtype=torch.bfloat16)
    trained = replace(trained, hidden=(2e4 * trained.hidden.detach()).requires_grad_())
    target = projection(seed=1, dtype=torch.bfloat16)
    target = replace(target, hidden=2e4 * target.hidden.detach())
    ours = answer(
        fused_loss(trained, [divergence_term(target, name=name)], vocabulary_size=VOCABULARY, scale=1.0, chunk_size=3),
        tensors(trained),
    )
    p, q = ((part.hidden @ part.weight.T).double().log_softmax(-1) for part in (trained, target))
    assert p.min() < -1e5 and p.exp().float().count_nonzero() == len(p)
    assert ours.loss.item() == pytest.approx(DIVERGENCES[name](p, q).sum().item(), rel=1e-5)
    assert all(gradient.isfinite().all() for gradient in ours.gradients)


def test_head_gradient_is_summed_in_float32_over_the_chunks() -> None:
    """512 equal chunks: a bfloat16 sum would stop growing at 256 times its summands."""
    rows = 512
    trained = projection(seed=0, rows=1, dtype=torch.bfloat16)
    trained = replace(trained, hidden=trained.hidden.detach().expand(rows, -1).clone().requires_grad_())
    terms = [LikelihoodTerm(labels=torch.zeros(rows, dtype=torch.int64))]
    results = [
        answer(
            fused_loss(trained, terms, vocabulary_size=VOCABULARY, scale=1.0, chunk_size=chunk_size),
            tensors(trained),
        )
        for chunk_size in (1, rows)
    ]
    torch.testing.assert_close(results[0].gradients[1], results[1].gradients[1], rtol=1e-2, atol=1e-2)
    assert results[0].gradients[1].abs().max() > 256


def test_a_loss_scale_rescues_gradients_below_the_range_of_float16() -> None:
    """scale alone (1 / tokens) makes every float16 gradient 0; the loss scale arrives before the rounding."""
    loss_scale, scale = 2.0**24, 2.0**-26
    trained = projection(seed=0)
    half = replace(trained, hidden=trained.hidden.detach().half().requires_grad_())
    widened = replace(trained, hidden=half.hidden.detach().float().requires_grad_())
    terms = [divergence_term(projection(seed=1))]

    def hidden_gradient(part, *, scale: float, factor: float):
        loss = fused_loss(part, terms, vocabulary_size=VOCABULARY, scale=scale, chunk_size=4).loss
        return torch.autograd.grad(loss, part.hidden, torch.tensor(factor))[0]

    reference = hidden_gradient(widened, scale=scale * loss_scale, factor=1.0)
    assert (reference * scale / loss_scale).half().abs().max() == 0
    scaled = hidden_gradient(half, scale=scale, factor=loss_scale)
    assert scaled.dtype == torch.float16
    torch.testing.assert_close(scaled.float(), reference, rtol=2e-3, atol=1e-6)
    assert hidden_gradient(half, scale=1.0, factor=loss_scale).isinf().any()  # the overflow the scaler looks for


def test_autocast_changes_nothing() -> None:
    trained = projection(seed=0)
    terms = [divergence_term(projection(seed=1))]
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = fused_loss(trained, terms, vocabulary_size=VOCABULARY, scale=1.0, chunk_size=4)
        results.append(answer(loss, tensors(trained)))
    assert_same(*results, rtol=0, atol=0)
