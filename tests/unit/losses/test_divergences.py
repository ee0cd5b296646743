"""The pure divergences: hand numbers, directions, columns without probability, gradients."""

import math

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from kd.losses.divergences import DIVERGENCES, Divergence, forward_kl, kl, reverse_kl
from tests.reference.plain_losses import plain_kl

INF = math.inf


def log_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def random_log_probs(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=-1).to(dtype)


def test_hand_numbers() -> None:
    p, q = log_of([0.5, 0.5], [0.25, 0.75]), log_of([0.25, 0.75], [0.25, 0.75])
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0]
    torch.testing.assert_close(kl(p, q), torch.tensor(expected, dtype=torch.float64))


def test_directions_follow_the_definition() -> None:
    trained, target = log_of([0.9, 0.1]), log_of([0.5, 0.5])
    reverse = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert abs(reverse - forward) > 0.1
    assert reverse_kl(trained, target).item() == pytest.approx(reverse, rel=1e-12)
    assert forward_kl(trained, target).item() == pytest.approx(forward, rel=1e-12)


def test_reverse_kl_prefers_one_mode_and_forward_kl_all_of_them() -> None:
    target = log_of([0.495, 0.495, 0.01])
    one_mode, spread = log_of([0.98, 0.01, 0.01]), log_of([0.34, 0.33, 0.33])
    assert reverse_kl(one_mode, target) < reverse_kl(spread, target)
    assert forward_kl(one_mode, target) > forward_kl(spread, target)


def test_kl_to_itself_is_zero_and_positive_elsewhere() -> None:
    p, q = random_log_probs(5, 11, seed=0), random_log_probs(5, 11, seed=1)
    assert torch.equal(kl(p, p), torch.zeros(5, dtype=torch.float64))
    assert (kl(p, q) > 0).all()


def test_values_and_gradients_match_the_oracle_for_any_leading_shape() -> None:
    p, q = random_log_probs(2, 3, 11, seed=0), random_log_probs(2, 3, 11, seed=1)
    cotangent = torch.linspace(-1, 2, 6, dtype=torch.float64).reshape(2, 3)
    results = []
    for function in (kl, plain_kl):
        leaves = [p.clone().requires_grad_(), q.clone().requires_grad_()]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves, cotangent)))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14)


def test_gradcheck_in_both_arguments() -> None:
    p = random_log_probs(3, 5, seed=0).requires_grad_()
    q = random_log_probs(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(kl, (p, q))


def test_a_second_backward_gives_the_same_gradient() -> None:
    p = random_log_probs(3, 5, seed=0).requires_grad_()
    value = kl(p, random_log_probs(3, 5, seed=1)).sum()
    (first,) = torch.autograd.grad(value, p, retain_graph=True)
    (second,) = torch.autograd.grad(value, p)
    assert torch.equal(first, second)


@pytest.mark.parametrize("log_q_of_empty_column", [-INF, -2.0])
def test_columns_without_probability_equal_their_removal(log_q_of_empty_column: float) -> None:
    p, q = random_log_probs(4, 6, seed=0), random_log_probs(4, 6, seed=1)
    padded_p = torch.cat([p, torch.full((4, 2), -INF, dtype=p.dtype)], dim=-1).requires_grad_()
    padded_q = torch.cat([q, torch.full((4, 2), log_q_of_empty_column, dtype=q.dtype)], dim=-1)
    padded_q.requires_grad_()
    leaves = [p.requires_grad_(), q.requires_grad_()]
    torch.testing.assert_close(kl(padded_p, padded_q), kl(p, q), rtol=0, atol=1e-15)
    plain = torch.autograd.grad(kl(p, q).sum(), leaves)
    padded = torch.autograd.grad(kl(padded_p, padded_q).sum(), [padded_p, padded_q])
    for ours, expected in zip(padded, plain, strict=True):
        assert torch.equal(ours[:, :6], expected)
        assert torch.equal(ours[:, 6:], torch.zeros(4, 2, dtype=p.dtype))


def test_a_target_without_the_trained_models_mass_is_infinitely_far() -> None:
    p, q = log_of([0.5, 0.5]), log_of([1.0, 0.0])
    assert kl(p, q).item() == INF
    assert kl(q, p).item() == pytest.approx(math.log(2))


def test_a_probability_below_the_dtype_counts_as_zero() -> None:
    p = torch.tensor([[0.0, -200.0]], requires_grad=True)  # exp(-200) is 0 in float32
    q = torch.tensor([[0.0, -INF]])
    value = kl(p, q)
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert value.item() == 0
    assert torch.equal(gradient, torch.tensor([[1.0, 0.0]]))


def test_a_slice_of_rows_equals_masking_them() -> None:
    p, q = random_log_probs(6, 9, seed=0), random_log_probs(6, 9, seed=1)
    mask = torch.tensor([True, False, True, True, False, False])
    assert torch.equal(kl(p, q)[mask], kl(p[mask], q[mask]))


@pytest.mark.parametrize("function", [kl, *DIVERGENCES.values()])
def test_declared_shapes_are_the_shapes(function: Divergence) -> None:
    checked = jaxtyped(typechecker=beartype)(function)
    p, q = random_log_probs(2, 3, 5, seed=0), random_log_probs(2, 3, 5, seed=1)
    assert checked(p, q).shape == (2, 3)
    with pytest.raises(TypeCheckError):
        checked(p, q[0, 0])
