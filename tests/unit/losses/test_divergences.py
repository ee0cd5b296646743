"""Every divergence: float64 oracle, hand numbers, directions, limits, bounds, columns without probability."""

import math
from functools import partial

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped
from torch import Tensor

from kd.losses.divergences import (
    DIVERGENCES,
    Divergence,
    at_temperature,
    forward_kl,
    jsd,
    kl,
    kl_to_mixture,
    make_divergence,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from tests.reference.plain_losses import PLAIN_DIVERGENCES, plain_jsd, plain_skew_kl, plain_skew_reverse_kl

INF = math.inf
NAMES = tuple(DIVERGENCES)


def log_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def random_log_probs(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).log_softmax(dim=-1)


def pair(*, softness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities [6, 11] of a trained model and a target."""
    return tuple((random_log_probs(6, 11, seed=seed) / softness).log_softmax(-1) for seed in (0, 1))


def value_and_gradient(divergence: Divergence, trained: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of their sum weighted 1, 2, 3, … to the trained model's log-probabilities."""
    leaf = trained.detach().clone().requires_grad_()
    value = divergence(leaf, target)
    (gradient,) = torch.autograd.grad(value, leaf, torch.arange(1.0, len(value) + 1, dtype=value.dtype))
    return value.detach(), gradient


def assert_equal_to_oracle(divergence, oracle, trained: Tensor, target: Tensor, **tolerance: float) -> None:
    ours = value_and_gradient(divergence, trained, target)
    plain = value_and_gradient(lambda q, p: oracle(p, q), trained.double(), target.double())
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.double(), other, **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_match_the_oracle(name: str) -> None:
    double = pair()
    assert_equal_to_oracle(DIVERGENCES[name], PLAIN_DIVERGENCES[name], *double, rtol=1e-11, atol=1e-13)
    single = [tensor.float() for tensor in double]
    assert_equal_to_oracle(DIVERGENCES[name], PLAIN_DIVERGENCES[name], *single, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("share", [1e-4, 0.3, 0.9, 1 - 1e-4])
def test_every_parameter_matches_the_oracle(share: float) -> None:
    for divergence, oracle in (
        (partial(jsd, beta=share), partial(plain_jsd, beta=share)),
        (partial(skew_kl, alpha=share), partial(plain_skew_kl, alpha=share)),
        (partial(skew_reverse_kl, alpha=share), partial(plain_skew_reverse_kl, alpha=share)),
    ):
        assert_equal_to_oracle(divergence, oracle, *pair(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_in_both_arguments(name: str) -> None:
    trained = random_log_probs(3, 5, seed=0).requires_grad_()
    target = random_log_probs(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(DIVERGENCES[name], (trained, target))
    assert torch.autograd.gradcheck(at_temperature(DIVERGENCES[name], 1.7), (trained, target))


def test_a_second_backward_gives_the_same_gradient() -> None:
    p = random_log_probs(3, 5, seed=0).requires_grad_()
    value = kl(p, random_log_probs(3, 5, seed=1)).sum()
    (first,) = torch.autograd.grad(value, p, retain_graph=True)
    (second,) = torch.autograd.grad(value, p)
    assert torch.equal(first, second)


def test_hand_numbers() -> None:
    trained, target = log_of([0.9, 0.1]), log_of([0.5, 0.5])
    reverse = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert reverse_kl(trained, target).item() == kl(trained, target).item() == pytest.approx(reverse, rel=1e-12)
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert forward_kl(trained, target).item() == pytest.approx(forward, rel=1e-12)
    # Both to the mixture 0.7, 0.3.
    halves = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3), 0.9 * math.log(0.9 / 0.7) + 0.1 * math.log(1 / 3)
    assert jsd(trained, target, beta=0.5).item() == pytest.approx(0.5 * sum(halves), rel=1e-12)
    # α = 0.25 of the model itself: 0.25 · 0.5 + 0.75 · 0.9 = 0.8, and 0.75 · 0.5 + 0.25 · 0.9 = 0.6
    skewed = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert skew_kl(trained, target, alpha=0.25).item() == pytest.approx(skewed, rel=1e-12)
    skewed = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    assert skew_reverse_kl(trained, target, alpha=0.25).item() == pytest.approx(skewed, rel=1e-12)
    assert total_variation(trained, target).item() == pytest.approx(0.4, rel=1e-12)


def test_reverse_kl_prefers_one_mode_and_forward_kl_all_of_them() -> None:
    target = log_of([0.495, 0.495, 0.01])
    one_mode, spread = log_of([0.98, 0.01, 0.01]), log_of([0.34, 0.33, 0.33])
    assert reverse_kl(one_mode, target) < reverse_kl(spread, target)
    assert forward_kl(one_mode, target) > forward_kl(spread, target)


@pytest.mark.parametrize("name", NAMES)
def test_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    trained, target = pair()
    value, gradient = value_and_gradient(DIVERGENCES[name], trained, trained)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)
    # Along the simplex: the gradient to log-probabilities may be any multiple of the probabilities.
    along = gradient - trained.exp() * gradient.sum(-1, keepdim=True)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-13)
    assert (DIVERGENCES[name](trained, target) > 0).all()


def test_jsd_divided_by_its_vanishing_weight_becomes_the_kls() -> None:
    trained, target = pair(softness=4)
    small = 1e-6
    for beta, limit in ((small, forward_kl), (1 - small, reverse_kl)):
        # Of logits: gradients to log-probabilities may differ by a multiple of the probabilities.
        end = at_temperature(partial(jsd, beta=beta), 2.0)
        expected = value_and_gradient(at_temperature(limit, 2.0), trained, target)
        for one, other in zip(value_and_gradient(end, trained, target), expected, strict=True):
            torch.testing.assert_close(one / small, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(jsd(trained, target, beta=0.0), forward_kl(trained, target))
    assert torch.equal(jsd(trained, target, beta=1.0), reverse_kl(trained, target))


def test_skew_divergences_become_the_kls() -> None:
    trained, target = pair(softness=4)
    for skewed, limit in ((skew_kl, forward_kl), (skew_reverse_kl, reverse_kl)):
        assert torch.equal(skewed(trained, target, alpha=0.0), limit(trained, target))
        torch.testing.assert_close(skewed(trained, target, alpha=1e-9), limit(trained, target), rtol=1e-6, atol=0)


def test_bounds_hold_where_the_models_exclude_each_other() -> None:
    """Where both KLs are infinite, the mixtures keep the other divergences and their gradients finite."""
    trained, target = log_of([1.0, 0.0, 0.0]), log_of([0.0, 0.5, 0.5])
    assert reverse_kl(trained, target).item() == forward_kl(trained, target).item() == INF
    for divergence, bound in (
        (partial(jsd, beta=0.5), math.log(2)),
        (partial(skew_kl, alpha=0.1), -math.log(0.1)),
        (partial(skew_reverse_kl, alpha=0.1), -math.log(0.1)),
        (total_variation, 1.0),
    ):
        value, gradient = value_and_gradient(divergence, trained, target)
        assert value.item() == pytest.approx(bound, rel=1e-12)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_columns_that_both_lack_equal_their_removal(name: str) -> None:
    trained, target = pair()
    nothing = torch.full((6, 2), -INF, dtype=trained.dtype)
    for divergence in (DIVERGENCES[name], at_temperature(DIVERGENCES[name], 2.0)):
        value, gradient = value_and_gradient(divergence, trained, target)
        padded, wide = value_and_gradient(
            divergence, torch.cat([trained, nothing], -1), torch.cat([target, nothing], -1)
        )
        torch.testing.assert_close(padded, value, rtol=0, atol=1e-15)
        torch.testing.assert_close(wide[:, :11], gradient, rtol=0, atol=1e-14)
        assert torch.equal(wide[:, 11:], torch.zeros_like(wide[:, 11:]))


def test_kl_ignores_columns_without_probability_in_p() -> None:
    p, q = pair()
    nothing, something = torch.full((6, 2), -INF, dtype=p.dtype), torch.full((6, 2), -2.0, dtype=p.dtype)
    leaves = [torch.cat([p, nothing], -1).requires_grad_(), torch.cat([q, something], -1).requires_grad_()]
    torch.testing.assert_close(kl(*leaves), kl(p, q), rtol=0, atol=1e-15)
    for gradient in torch.autograd.grad(kl(*leaves).sum(), leaves):
        assert torch.equal(gradient[:, 11:], torch.zeros_like(gradient[:, 11:]))


def test_a_probability_below_the_dtype_counts_as_zero() -> None:
    p = torch.tensor([[0.0, -200.0]], requires_grad=True)  # exp(-200) is 0 in float32
    value = kl(p, torch.tensor([[0.0, -INF]]))
    (gradient,) = torch.autograd.grad(value.sum(), p)
    assert value.item() == 0
    assert torch.equal(gradient, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("name", NAMES)
def test_extreme_float32_logits_match_the_oracle(name: str) -> None:
    """Differences of up to 10,000 nats: exp overflows, underflows, and mixtures lose one side altogether."""
    generator = torch.Generator().manual_seed(0)
    logits = [3e3 * torch.randn(64, 9, generator=generator) for _ in range(2)]
    logits[1][32:] = logits[0][32:] + torch.randn(32, 9, generator=generator)
    trained, target = (tensor.log_softmax(-1) for tensor in logits)
    assert trained.min() < -9000
    # To a mixture nothing matters below e^-600, and the oracle's own logarithm stays finite.
    least = -INF if name in ("forward_kl", "reverse_kl") else -600

    def oracle(p: Tensor, q: Tensor) -> Tensor:
        return PLAIN_DIVERGENCES[name](p.clamp_min(least), q.clamp_min(least))

    assert_equal_to_oracle(DIVERGENCES[name], oracle, trained, target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_temperature_divides_the_logits_of_both(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    trained, target = (4 * torch.randn(5, 11, generator=generator, dtype=torch.float64) for _ in range(2))

    def of_logits(logits: Tensor, other: Tensor) -> Tensor:
        return DIVERGENCES[name]((logits / 2.5).log_softmax(-1), (other / 2.5).log_softmax(-1))

    def of_log_probs(logits: Tensor, other: Tensor) -> Tensor:
        return at_temperature(DIVERGENCES[name], 2.5)(logits.log_softmax(-1), other.log_softmax(-1))

    for one, other in zip(
        value_and_gradient(of_log_probs, trained, target), value_and_gradient(of_logits, trained, target), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_names_take_their_own_parameters() -> None:
    trained, target = pair()
    parameters = {"jsd": {"beta": 0.2}, "skew_kl": {"alpha": 0.3}, "skew_reverse_kl": {"alpha": 0.3}}
    for name, divergence in DIVERGENCES.items():
        expected = divergence(trained, target, **parameters.get(name, {}))
        assert torch.equal(make_divergence(name, beta=0.2, alpha=0.3)(trained, target), expected), name
        tempered = make_divergence(name, beta=0.2, alpha=0.3, temperature=2.0)(trained, target)
        assert (tempered - expected).abs().max() > 1e-3, name


@pytest.mark.parametrize("own_share", [0.0, 1.0])
def test_a_mixture_of_one_distribution_is_refused(own_share: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        kl_to_mixture(*pair(), own_share=own_share)


@pytest.mark.parametrize("function", [kl, *DIVERGENCES.values()])
def test_any_leading_shape_is_reduced_and_other_shapes_are_refused(function: Divergence) -> None:
    checked = jaxtyped(typechecker=beartype)(function)
    p, q = random_log_probs(2, 3, 5, seed=0), random_log_probs(2, 3, 5, seed=1)
    values = checked(p, q)
    assert values.shape == (2, 3)
    torch.testing.assert_close(values[1], function(p[1], q[1]), rtol=1e-14, atol=0)
    with pytest.raises(TypeCheckError):
        checked(p, q[0, 0])
