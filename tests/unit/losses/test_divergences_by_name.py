"""What a configuration may name: oracle, limits, bounds, parameters and temperature of each divergence."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kd.losses.divergences import (
    DIVERGENCES,
    at_temperature,
    forward_kl,
    jsd,
    kl,
    make_divergence,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)
from kd.losses.mixture import kl_to_mixture
from tests.reference.plain_losses import PLAIN_DIVERGENCES, plain_jsd, plain_skew_kl, plain_skew_reverse_kl
from tests.unit.losses.test_divergences import INF, log_of, random_log_probs

NAMES = tuple(DIVERGENCES)


def soft_log_probs(*, seed: int) -> Tensor:
    """Without large ratios, which slow down every limit."""
    return (random_log_probs(4, 9, seed=seed) / 4).log_softmax(-1)


def value_and_gradient(divergence, trained: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
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
    trained, target = random_log_probs(6, 11, seed=0), random_log_probs(6, 11, seed=1)
    assert_equal_to_oracle(DIVERGENCES[name], PLAIN_DIVERGENCES[name], trained, target, rtol=1e-11, atol=1e-13)
    single = [tensor.float() for tensor in (trained, target)]
    assert_equal_to_oracle(DIVERGENCES[name], PLAIN_DIVERGENCES[name], *single, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("share", [1e-4, 0.3, 0.9, 1 - 1e-4])
def test_every_parameter_matches_the_oracle(share: float) -> None:
    trained, target = random_log_probs(6, 11, seed=2), random_log_probs(6, 11, seed=3)
    for divergence, oracle in (
        (partial(jsd, beta=share), partial(plain_jsd, beta=share)),
        (partial(skew_kl, alpha=share), partial(plain_skew_kl, alpha=share)),
        (partial(skew_reverse_kl, alpha=share), partial(plain_skew_reverse_kl, alpha=share)),
    ):
        assert_equal_to_oracle(divergence, oracle, trained, target, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_in_both_arguments(name: str) -> None:
    trained = random_log_probs(3, 5, seed=0).requires_grad_()
    target = random_log_probs(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(DIVERGENCES[name], (trained, target))
    assert torch.autograd.gradcheck(at_temperature(DIVERGENCES[name], 1.7), (trained, target))


def test_hand_numbers() -> None:
    trained, target = log_of([0.9, 0.1]), log_of([0.5, 0.5])
    middle = [0.7, 0.3]
    half = [sum(a * math.log(a / m) for a, m in zip(row, middle, strict=True)) for row in ([0.5, 0.5], [0.9, 0.1])]
    assert jsd(trained, target, beta=0.5).item() == pytest.approx(0.5 * sum(half), rel=1e-12)
    # α = 0.25 of the model itself: 0.25 · 0.5 + 0.75 · 0.9 = 0.8, and 0.75 · 0.5 + 0.25 · 0.9 = 0.6
    skewed = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert skew_kl(trained, target, alpha=0.25).item() == pytest.approx(skewed, rel=1e-12)
    reverse = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    assert skew_reverse_kl(trained, target, alpha=0.25).item() == pytest.approx(reverse, rel=1e-12)
    assert total_variation(trained, target).item() == pytest.approx(0.4, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_zero_at_equality_and_positive_elsewhere(name: str) -> None:
    trained, target = random_log_probs(5, 11, seed=0), random_log_probs(5, 11, seed=1)
    value, gradient = value_and_gradient(DIVERGENCES[name], trained, trained)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)
    # Along the simplex: the gradient to log-probabilities may be any multiple of the probabilities.
    along = gradient - trained.exp() * gradient.sum(-1, keepdim=True)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-13)
    assert (DIVERGENCES[name](trained, target) > 0).all()


def test_jsd_meets_both_kls_at_its_ends_divided_by_the_vanishing_weight() -> None:
    trained, target = soft_log_probs(seed=0), soft_log_probs(seed=1)
    small = 1e-6
    for beta, limit in ((small, forward_kl), (1 - small, reverse_kl)):
        # Of logits: gradients to log-probabilities may differ by a multiple of the probabilities.
        end = at_temperature(partial(jsd, beta=beta), 2.0)
        expected = value_and_gradient(at_temperature(limit, 2.0), trained, target)
        for one, other in zip(value_and_gradient(end, trained, target), expected, strict=True):
            torch.testing.assert_close(one / small, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(jsd(trained, target, beta=0.0), forward_kl(trained, target))
    assert torch.equal(jsd(trained, target, beta=1.0), reverse_kl(trained, target))


def test_jsd_swaps_with_its_arguments() -> None:
    trained, target = random_log_probs(4, 9, seed=0), random_log_probs(4, 9, seed=1)
    torch.testing.assert_close(jsd(trained, target, beta=0.3), jsd(target, trained, beta=0.7))
    assert (jsd(trained, target, beta=0.3) - jsd(target, trained, beta=0.3)).abs().max() > 1e-3


def test_skew_divergences_become_the_kls() -> None:
    trained, target = soft_log_probs(seed=0), soft_log_probs(seed=1)
    for skewed, limit in ((skew_kl, forward_kl), (skew_reverse_kl, reverse_kl)):
        assert torch.equal(skewed(trained, target, alpha=0.0), limit(trained, target))
        torch.testing.assert_close(skewed(trained, target, alpha=1e-9), limit(trained, target), rtol=1e-6, atol=0)


def test_bounds_hold_where_the_models_exclude_each_other() -> None:
    """Where both KLs are infinite, the mixtures keep the others finite, and so their gradients."""
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
    trained, target = random_log_probs(4, 6, seed=0), random_log_probs(4, 6, seed=1)
    nothing = torch.full((4, 2), -INF, dtype=trained.dtype)
    for divergence in (DIVERGENCES[name], at_temperature(DIVERGENCES[name], 2.0)):
        value, gradient = value_and_gradient(divergence, trained, target)
        padded, wide = value_and_gradient(
            divergence, torch.cat([trained, nothing], -1), torch.cat([target, nothing], -1)
        )
        torch.testing.assert_close(padded, value, rtol=0, atol=1e-15)
        torch.testing.assert_close(wide[:, :6], gradient, rtol=0, atol=1e-14)
        assert torch.equal(wide[:, 6:], torch.zeros_like(wide[:, 6:]))


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
    trained, target = random_log_probs(4, 9, seed=0), random_log_probs(4, 9, seed=1)
    expected = {
        "reverse_kl": reverse_kl(trained, target),
        "forward_kl": forward_kl(trained, target),
        "jsd": jsd(trained, target, beta=0.2),
        "skew_kl": skew_kl(trained, target, alpha=0.3),
        "skew_reverse_kl": skew_reverse_kl(trained, target, alpha=0.3),
        "total_variation": total_variation(trained, target),
    }
    assert expected.keys() == DIVERGENCES.keys()
    for name, value in expected.items():
        assert torch.equal(make_divergence(name, beta=0.2, alpha=0.3)(trained, target), value), name
        tempered = make_divergence(name, beta=0.2, alpha=0.3, temperature=2.0)(trained, target)
        assert (tempered - value).abs().max() > 1e-3, name


@pytest.mark.parametrize("own_share", [0.0, 1.0])
def test_a_mixture_of_one_is_refused(own_share: float) -> None:
    p = random_log_probs(2, 3, seed=0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        kl_to_mixture(p, p, own_share=own_share)


def test_kl_to_a_mixture_is_below_the_kl_to_its_other_part() -> None:
    p, q = random_log_probs(4, 9, seed=0), random_log_probs(4, 9, seed=1)
    shares = [1e-6, 0.2, 0.5, 0.8]
    values = [kl_to_mixture(p, q, own_share=share) for share in shares]
    assert all((later < earlier).all() for earlier, later in zip([kl(p, q), *values], values, strict=False))
