"""MiniLLM's rewards, returns, weights and clipped ratio against numbers worked out by hand, and in the chunked loss."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kd.losses.fused import fused_loss
from kd.losses.policy_gradient import (
    LogProbRecorder,
    PolicyGradientTerm,
    future_returns,
    importance_weights,
    token_rewards,
    whiten,
)
from tests.reference.plain_losses import plain_log_probs
from tests.unit.losses.problems import NUM_ROWS, VOCABULARY, answer, assert_same, projection, tensors

# A response of three tokens of a vocabulary of three, and what both models gave them.
STUDENT = torch.tensor([0.5, 0.25, 0.2], dtype=torch.float64).log()
TEACHER = torch.tensor([0.25, 0.5, 0.8], dtype=torch.float64).log()
LN2 = math.log(2)


def test_rewards_are_scaled_log_ratios_within_a_limit() -> None:
    assert token_rewards(STUDENT, TEACHER, scale=1.0, limit=100.0).tolist() == pytest.approx([-LN2, LN2, 2 * LN2])
    assert token_rewards(STUDENT, TEACHER, scale=0.5, limit=2.5).tolist() == pytest.approx([-2 * LN2, 2 * LN2, 2.5])
    assert token_rewards(STUDENT, TEACHER, scale=0.5, limit=1.0).tolist() == pytest.approx([-1, 1, 1])


def test_returns_are_what_later_tokens_earn() -> None:
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
    # Never above 1 / (1 - α), and 0 where the student would never have said it.
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


def random_term(seed: int = 0) -> PolicyGradientTerm:
    generator = torch.Generator().manual_seed(seed)
    return PolicyGradientTerm(
        labels=torch.randint(VOCABULARY, (NUM_ROWS,), generator=generator),
        sampled_log_probs=-3 * torch.rand(NUM_ROWS, generator=generator),
        importance_weights=0.5 + torch.rand(NUM_ROWS, generator=generator),
        advantages=torch.randn(NUM_ROWS, generator=generator),
        ratio_clip=0.2,
        weight=1.5,
    )


@pytest.mark.parametrize("chunk_size", [1, 4, NUM_ROWS])
def test_the_chunked_loss_equals_the_plain_formula(chunk_size: int) -> None:
    part, term = projection(seed=1, vocabulary=VOCABULARY + 2), random_term()
    result = fused_loss(part, [term], vocabulary_size=VOCABULARY, scale=0.3, chunk_size=chunk_size)
    log_probs = plain_log_probs(part.hidden, part.weight, part.bias, vocabulary_size=VOCABULARY)
    total: Tensor = torch.zeros((), dtype=torch.float64)
    for row, log_prob in enumerate(log_probs):
        ratio = term.importance_weights[row] * (log_prob[term.labels[row]] - term.sampled_log_probs[row]).exp()
        advantage = term.advantages[row]
        total = total - torch.minimum(advantage * ratio, advantage * ratio.clip(0.8, 1.2))
    gradients = list(torch.autograd.grad(0.3 * 1.5 * total, tensors(part)))
    ours = answer(result, tensors(part))
    expected = replace(ours, loss=0.45 * total.detach(), term_sums=total.detach()[None], gradients=gradients)
    assert_same(ours, expected)


def test_a_recorder_writes_down_every_label_of_every_chunk() -> None:
    part = projection(seed=2, trainable=False)
    labels = torch.randint(VOCABULARY, (NUM_ROWS,), generator=torch.Generator().manual_seed(3))
    recorder = LogProbRecorder.of(labels)
    fused_loss(part, [recorder], vocabulary_size=VOCABULARY, scale=1.0, chunk_size=4)
    log_probs = plain_log_probs(part.hidden, part.weight, part.bias, vocabulary_size=VOCABULARY)
    wanted = log_probs[torch.arange(NUM_ROWS), labels]
    torch.testing.assert_close(recorder.values.double(), wanted, rtol=1e-5, atol=1e-6)


def test_terms_of_another_length_are_refused() -> None:
    part = projection(seed=1, rows=NUM_ROWS)
    short = replace(random_term(), advantages=torch.zeros(NUM_ROWS - 1))
    with pytest.raises(ValueError, match=r"advantages are \[9\], expected \[10\]"):
        fused_loss(part, [short], vocabulary_size=VOCABULARY, scale=1.0, chunk_size=4)
    recorder = LogProbRecorder.of(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels are \[3\], expected \[10\]"):
        fused_loss(part, [recorder], vocabulary_size=VOCABULARY, scale=1.0, chunk_size=4)
