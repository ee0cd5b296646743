"""MiniLLM's rewards, returns, weights and clipped ratio against numbers worked out by hand, and in the fused loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd.losses.policy_gradient import PolicyGradientTerm, future_returns, importance_weights, token_rewards, whiten
from tests.unit.losses.problems import (
    NUM_ROWS,
    VOCABULARY,
    assert_same,
    make_outputs,
    oracle_log_probs,
    oracle_solution,
    solve,
)

# A response of three tokens of a vocabulary of three, with the probabilities of both models.
STUDENT = torch.tensor([0.5, 0.25, 0.2], dtype=torch.float64).log()
TEACHER = torch.tensor([0.25, 0.5, 0.8], dtype=torch.float64).log()
LN2 = math.log(2)


def test_rewards_are_scaled_log_ratios_within_a_limit() -> None:
    assert token_rewards(STUDENT, TEACHER, scale=1.0, limit=100.0).tolist() == pytest.approx([-LN2, LN2, 2 * LN2])
    assert token_rewards(STUDENT, TEACHER, scale=0.5, limit=2.5).tolist() == pytest.approx([-2 * LN2, 2 * LN2, 2.5])
    assert token_rewards(STUDENT, TEACHER, scale=0.5, limit=1.0).tolist() == pytest.approx([-1, 1, 1])


def test_returns_sum_the_rewards_of_later_tokens() -> None:
    rewards = token_rewards(STUDENT, TEACHER, scale=1.0, limit=100.0)
    plain = future_returns(rewards, discount=1.0, length_normalized=False)
    assert plain.tolist() == pytest.approx([3 * LN2, 2 * LN2, 0])
    discounted = future_returns(rewards, discount=0.5, length_normalized=False)
    assert discounted.tolist() == pytest.approx([2 * LN2, 2 * LN2, 0])
    # Two tokens come after the first, one after the second.
    normalized = future_returns(rewards, discount=0.5, length_normalized=True)
    assert normalized.tolist() == pytest.approx([LN2, 2 * LN2, 0])
    assert future_returns(rewards[:0], discount=1.0, length_normalized=True).tolist() == []
    assert future_returns(rewards[:1], discount=1.0, length_normalized=True).tolist() == [0]


def test_importance_weights_are_the_students_part_of_the_mixture() -> None:
    # q / (0.2 p + 0.8 q): 0.5 / 0.45, 0.25 / 0.3, 0.2 / 0.32
    weights = importance_weights(STUDENT, TEACHER, teacher_share=0.2)
    assert weights.tolist() == pytest.approx([10 / 9, 5 / 6, 5 / 8])
    assert importance_weights(STUDENT, TEACHER, teacher_share=0.0).tolist() == [1, 1, 1]
    # Never above 1 / (1 - α), and 0 where the student gives the token no probability.
    extreme = importance_weights(torch.tensor([0.0, -900.0]), torch.tensor([-900.0, 0.0]), teacher_share=0.2)
    assert extreme.tolist() == pytest.approx([1.25, 0])


def test_whitening_moves_to_mean_0_and_variance_1() -> None:
    # Mean 3, variance 8.
    assert whiten(torch.tensor([1.0, 1.0, 7.0, 3.0])).tolist() == pytest.approx(
        [-2 / math.sqrt(6), -2 / math.sqrt(6), 4 / math.sqrt(6), 0]
    )
    assert whiten(torch.full((3,), 5.0)).tolist() == [0, 0, 0]
    assert whiten(torch.zeros(0)).tolist() == []


@pytest.mark.parametrize(
    ("probability", "sampled", "weight", "advantage", "loss", "slope"),
    [
        # slope: of the loss in log q_θ(y_t).
        pytest.param(0.5, 0.5, 1.0, 2.0, -2.0, -2.0, id="first inner epoch"),
        pytest.param(0.5, 0.4, 1.0, 2.0, -2.4, 0.0, id="has earned enough"),
        pytest.param(0.5, 0.4, 1.0, -2.0, 2.5, 2.5, id="has risen, shall fall"),
        pytest.param(0.3, 0.5, 1.0, -2.0, 1.6, 0.0, id="has fallen enough"),
        pytest.param(0.3, 0.5, 1.0, 2.0, -1.2, -1.2, id="has fallen, shall rise"),
        pytest.param(0.5, 0.4, 0.8, 2.0, -2.0, -2.0, id="the weight belongs to the ratio"),
        pytest.param(0.5, 0.5, 0.5, -2.0, 1.6, 0.0, id="a weight alone can be below the limit"),
    ],
)
def test_the_ratio_is_clipped(
    probability: float, sampled: float, weight: float, advantage: float, loss: float, slope: float
) -> None:
    rest = (1 - probability) / 2
    log_probs = torch.tensor([[rest, probability, rest]], dtype=torch.float64).log().requires_grad_()
    term = PolicyGradientTerm(
        labels=torch.tensor([1]),
        sampled_log_probs=torch.tensor([math.log(sampled)], dtype=torch.float64),
        importance_weights=torch.tensor([weight], dtype=torch.float64),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        ratio_clip=0.2,
    )
    value = term.per_token(log_probs, None, slice(0, 1))
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    assert value.tolist() == pytest.approx([loss])
    assert gradient.tolist() == [pytest.approx([0, slope, 0])]


def random_term() -> PolicyGradientTerm:
    generator = torch.Generator().manual_seed(0)
    return PolicyGradientTerm(
        labels=torch.randint(VOCABULARY, (NUM_ROWS,), generator=generator),
        sampled_log_probs=-3 * torch.rand(NUM_ROWS, generator=generator),
        importance_weights=0.5 + torch.rand(NUM_ROWS, generator=generator),
        advantages=torch.randn(NUM_ROWS, generator=generator),
        ratio_clip=0.2,
        weight=1.5,
    )


@pytest.mark.parametrize("chunk_size", [1, 4, NUM_ROWS])
def test_the_fused_loss_equals_the_plain_formula(chunk_size: int) -> None:
    trained, term = make_outputs(seed=1, padding=2), random_term()
    total: Tensor = torch.zeros((), dtype=torch.float64)
    for row, log_prob in enumerate(oracle_log_probs(trained)):
        ratio = term.importance_weights[row] * (log_prob[term.labels[row]] - term.sampled_log_probs[row]).exp()
        advantage = term.advantages[row]
        total = total - torch.minimum(advantage * ratio, advantage * ratio.clip(0.8, 1.2))
    assert_same(solve(trained, term, chunk_size=chunk_size), oracle_solution(trained, term, sums=[total]))


def test_terms_of_another_length_are_refused() -> None:
    short = replace(random_term(), advantages=torch.zeros(NUM_ROWS - 1))
    with pytest.raises(ValueError, match=r"advantages are \[9\], expected \[10\]"):
        solve(make_outputs(seed=1), short)
