"""Loss terms: direction, weight, and the two seams of a divergence, through the fused loss against the oracle."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd.losses.divergences import forward_kl, reverse_kl
from kd.losses.terms import TRAINED, DivergenceTerm, kl
from tests.reference.plain_losses import plain_kl
from tests.unit.losses.problems import assert_same, make_outputs, oracle_log_probs, oracle_solution, solve


def weight_by_position(target: Tensor, trained: Tensor, indices: Tensor) -> Tensor:
    """Depends on all three arguments."""
    return (1 + indices) * (target.exp() - trained.exp()).abs().sum(-1)


def interpolate(target: Tensor, trained: Tensor) -> Tensor:
    return torch.logaddexp(target, trained) - torch.tensor(2.0).log()


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_argument_order_is_the_direction(direction: str) -> None:
    trained, other = make_outputs(seed=0), make_outputs(seed=1)
    q, p = oracle_log_probs(trained), oracle_log_probs(other).detach()
    term, value = (
        (kl(TRAINED, other), plain_kl(q, p)) if direction == "reverse" else (kl(other, TRAINED), plain_kl(p, q))
    )
    assert_same(solve(trained, term), oracle_solution(trained, term, sums=[value.sum()]))


def test_kl_compares_the_trained_model_with_one_other() -> None:
    other = make_outputs(seed=1)
    for pair in ((TRAINED, TRAINED), (other, other)):
        with pytest.raises(TypeError, match="TRAINED and the outputs of one model"):
            kl(*pair)


@pytest.mark.parametrize("chunk_size", [1, 4, 100])
@pytest.mark.parametrize("seam", ["transform", "token_weight", "both"])
def test_transform_and_token_weight_match_the_oracle(seam: str, chunk_size: int) -> None:
    trained, target = make_outputs(seed=0, bias=True), make_outputs(seed=1, padding=3)
    transform = None if seam == "token_weight" else interpolate
    token_weight = None if seam == "transform" else weight_by_position
    term = DivergenceTerm(
        divergence=forward_kl, target=target, transform=transform, token_weight=token_weight, weight=0.7
    )
    q, p = oracle_log_probs(trained), oracle_log_probs(target).detach()
    # Both are constants for the gradient.
    learned = p if transform is None else (p.exp() / 2 + q.detach().exp() / 2).log()
    weights = 1.0
    if token_weight is not None:
        weights = (1 + target.token_indices) * (p.exp() - q.detach().exp()).abs().sum(-1)
    sums = [(weights * plain_kl(learned, q)).sum()]
    assert_same(solve(trained, term, chunk_size=chunk_size), oracle_solution(trained, term, sums=sums))


def test_a_token_weight_needs_the_indices_of_the_tokens() -> None:
    target = replace(make_outputs(seed=1), token_indices=None)
    term = DivergenceTerm(divergence=reverse_kl, target=target, token_weight=weight_by_position)
    with pytest.raises(ValueError, match="needs the outputs of a micro-batch"):
        solve(make_outputs(seed=0), term)
