"""The fused loss: values and gradients against the oracle, vocabularies, heads, several terms, edges."""

import math
from dataclasses import replace

import pytest
import torch

from kd.losses.divergences import DIVERGENCES, reverse_kl
from kd.losses.fused import fused_loss
from kd.losses.outputs import UNCHANGED, Head, LogitMap, Outputs
from kd.losses.terms import CrossEntropyTerm, DivergenceTerm, cross_entropy
from tests.unit.losses.problems import (
    LABELS,
    NUM_ROWS,
    SCALE,
    VOCABULARY,
    assert_same,
    differentiate,
    divergence_term,
    make_outputs,
    oracle,
    oracle_log_probs,
    solve,
    tensors,
)


def with_head(outputs: Outputs, **changes) -> Outputs:
    return replace(outputs, head=replace(outputs.head, **changes))


def fused(trained: Outputs, *terms) -> torch.Tensor:
    return fused_loss(trained, terms, scale=SCALE, chunk_size=4).loss


def test_hand_numbers() -> None:
    """One position, two words: the trained model gives 3/4 and 1/4, the target one half each."""
    head = Head(weight=torch.eye(2), vocabulary_size=2)
    trained = Outputs(hidden=torch.tensor([[math.log(3.0), 0.0]], requires_grad=True), head=head)
    result = fused_loss(
        trained, [divergence_term(Outputs(hidden=torch.zeros(1, 2), head=head))], scale=2.0, chunk_size=1
    )
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert result.loss.item() == pytest.approx(2 * kl, rel=1e-6)
    assert result.term_sums.tolist() == pytest.approx([kl], rel=1e-6)
    # d KL / d logit_v = p_v (log p_v - log q_v - KL)
    gradient = [[2 * 0.75 * (math.log(1.5) - kl), 2 * 0.25 * (math.log(0.5) - kl)]]
    torch.testing.assert_close(torch.autograd.grad(result.loss, trained.hidden)[0], torch.tensor(gradient))


@pytest.mark.parametrize("chunk_size", [1, 7, NUM_ROWS, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_matches_the_oracle_for_every_chunk_size(name: str, bias: bool, chunk_size: int) -> None:
    trained = make_outputs(seed=0, bias=bias)
    term = divergence_term(make_outputs(seed=1, hidden_size=8, bias=bias), name=name)
    assert_same(solve(trained, term, chunk_size=chunk_size), oracle(trained, term))


MAPS = [LogitMap(scale=0.25), LogitMap(cap=1.5), LogitMap(scale=2.0, cap=3.0)]


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("logit_map", MAPS, ids=str)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_scaled_and_capped_logits_match_the_oracle(name: str, logit_map: LogitMap, chunk_size: int) -> None:
    trained = make_outputs(seed=0, padding=3, bias=True, logit_map=logit_map)
    # Each model has a map of its own.
    target = make_outputs(seed=1, hidden_size=8, logit_map=LogitMap(scale=0.5, cap=2.0))
    term = divergence_term(target, name=name)
    assert_same(solve(trained, term, chunk_size=chunk_size), oracle(trained, term))
    assert_same(solve(trained, cross_entropy(LABELS)), oracle(trained, cross_entropy(LABELS)))
    unmapped = with_head(trained, logit_map=UNCHANGED)
    assert not torch.allclose(solve(unmapped, term).loss, solve(trained, term).loss, rtol=1e-3)
    expected = oracle_log_probs(trained)[torch.arange(NUM_ROWS), LABELS].float()
    torch.testing.assert_close(trained.token_log_probs(LABELS, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("logit_map", MAPS, ids=str)
def test_a_maps_derivative_equals_finite_differences(logit_map: LogitMap) -> None:
    values = torch.linspace(-9, 9, 37, dtype=torch.float64)
    step = 1e-6
    expected = (logit_map(values + step) - logit_map(values - step)) / (2 * step)
    derivative = torch.as_tensor(logit_map.derivative(logit_map(values)), dtype=torch.float64).expand_as(values)
    torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-8)


def test_several_terms_are_the_weighted_sum_of_each() -> None:
    trained = make_outputs(seed=0)
    terms = [
        divergence_term(make_outputs(seed=1, hidden_size=8)),
        0.25 * divergence_term(make_outputs(seed=2), name="forward_kl"),
        0.5 * (1.4 * cross_entropy(LABELS)),
    ]
    assert [term.weight for term in terms] == pytest.approx([1, 0.25, 0.7])
    together = solve(trained, *terms)
    assert_same(together, oracle(trained, *terms))
    singles = [solve(trained, term) for term in terms]
    torch.testing.assert_close(together.loss, sum(single.loss for single in singles))
    torch.testing.assert_close(together.term_sums, torch.cat([single.term_sums for single in singles]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_equal_finite_differences(name: str, bias: bool) -> None:
    small = {"rows": 3, "vocabulary": 5, "dtype": torch.float64}
    trained = make_outputs(seed=0, padding=2, hidden_size=4, bias=bias, **small)
    target = make_outputs(seed=1, padding=1, hidden_size=2, trainable=False, **small)
    terms = [divergence_term(target, name=name), 0.5 * cross_entropy(torch.tensor([0, 4, 2]))]

    def loss() -> torch.Tensor:
        return fused_loss(trained, terms, scale=SCALE, chunk_size=2).loss

    for tensor, gradient in zip(tensors(trained), torch.autograd.grad(loss(), tensors(trained)), strict=True):
        numeric = torch.empty_like(gradient)
        for index in range(tensor.numel()):
            values = []
            for shift in (1e-6, -2e-6):
                tensor.data.view(-1)[index] += shift
                values.append(loss().item())
            tensor.data.view(-1)[index] += 1e-6
            numeric.view(-1)[index] = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_a_second_backward_is_refused() -> None:
    """The first one scales the gradients in place: a second one would scale them again."""
    loss = fused(make_outputs(seed=0), divergence_term(make_outputs(seed=1)))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_padding_rows_of_both_heads_have_no_part(name: str) -> None:
    """151,936 against 152,064 rows in small: as if both heads ended with the shared vocabulary."""
    trained, target = make_outputs(seed=0, padding=3, bias=True), make_outputs(seed=1, padding=5)
    without = with_head(
        trained,
        weight=trained.head.weight[:VOCABULARY].detach().requires_grad_(),
        bias=trained.head.bias[:VOCABULARY].detach().requires_grad_(),
    )
    padded = solve(trained, divergence_term(target, name=name))
    shorter = with_head(target, weight=target.head.weight[:VOCABULARY])
    plain = solve(without, divergence_term(shorter, name=name))
    for gradient in padded.gradients[1:]:
        assert torch.equal(gradient[VOCABULARY:], torch.zeros_like(gradient[VOCABULARY:]))
    padded.gradients[1:] = [gradient[:VOCABULARY] for gradient in padded.gradients[1:]]
    assert_same(padded, plain, rtol=0, atol=1e-7)


def test_a_tied_head_collects_both_of_its_gradients() -> None:
    def oracle_loss(trained: Outputs, term: DivergenceTerm) -> torch.Tensor:
        p, q = oracle_log_probs(trained), oracle_log_probs(term.target)
        return SCALE * (p.exp() * (p - q)).sum()

    results = []
    for loss_of in (fused, oracle_loss):
        trained = make_outputs(seed=0)
        embedding = trained.head.weight
        trained = replace(trained, hidden=torch.tanh(embedding[torch.arange(NUM_ROWS) % 4]))
        loss_of(trained, divergence_term(make_outputs(seed=1, trainable=False))).backward()
        results.append(embedding.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_only_what_requires_a_gradient_gets_one() -> None:
    target = make_outputs(seed=1)
    both = solve(make_outputs(seed=0), divergence_term(target)).gradients
    frozen_head = make_outputs(seed=0)
    frozen_head.head.weight.requires_grad_(False)
    fused(frozen_head, divergence_term(target)).backward()
    torch.testing.assert_close(frozen_head.hidden.grad, both[0])
    frozen_hidden = make_outputs(seed=0)
    frozen_hidden.hidden.requires_grad_(False)
    fused(frozen_hidden, divergence_term(target)).backward()
    torch.testing.assert_close(frozen_hidden.head.weight.grad, both[1])
    assert all(tensor.grad is None for tensor in (*tensors(target), frozen_head.head.weight, frozen_hidden.hidden))


def test_the_head_may_be_partitioned_before_backward() -> None:
    """Under ZeRO-3 a gathered head is emptied again after the forward pass."""
    gradients = solve(make_outputs(seed=0), divergence_term(make_outputs(seed=1))).gradients
    trained, target = make_outputs(seed=0), make_outputs(seed=1, trainable=False)
    trained.head.weight.requires_grad_(False)
    loss = fused(trained, divergence_term(target))
    trained.head.weight.data, target.head.weight.data = torch.empty(0), torch.empty(0)
    assert torch.equal(torch.autograd.grad(loss, trained.hidden)[0], gradients[0])


@pytest.mark.parametrize("how", ["no_grad", "frozen"])
def test_without_gradients_only_values_are_computed(how: str) -> None:
    def fail_if_differentiated(trained, target):
        assert not torch.is_grad_enabled() and not trained.requires_grad
        return reverse_kl(trained, target)

    target = make_outputs(seed=1)
    term = DivergenceTerm(divergence=fail_if_differentiated, target=target)
    with torch.set_grad_enabled(how != "no_grad"):
        result = fused_loss(make_outputs(seed=0, trainable=how != "frozen"), [term], scale=SCALE, chunk_size=4)
    reference = solve(make_outputs(seed=0), divergence_term(target))
    assert not result.loss.requires_grad
    assert torch.equal(result.loss, reference.loss) and torch.equal(result.term_sums, reference.term_sums)


def test_no_position_gives_a_zero_loss_with_zero_gradients() -> None:
    trained = make_outputs(seed=0, rows=0, bias=True)
    terms = [divergence_term(make_outputs(seed=1, rows=0)), cross_entropy(LABELS[:0])]
    result = fused_loss(trained, terms, scale=SCALE, chunk_size=4)
    assert result.loss.grad_fn is not None and result.loss.item() == 0 and result.term_sums.tolist() == [0, 0]
    for gradient in differentiate(result, tensors(trained)).gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_term_of_weight_zero_is_only_measured() -> None:
    """The last step of a linear schedule: even an infinite term then leaves loss and gradients finite."""
    trained, target = make_outputs(seed=0), make_outputs(seed=1)
    infinite = with_head(target, bias=torch.cat([torch.zeros(VOCABULARY - 1), torch.tensor([-math.inf])]))
    alone = solve(trained, divergence_term(target))
    both = solve(trained, divergence_term(target), 0.0 * divergence_term(infinite))
    assert torch.equal(both.loss, alone.loss) and both.term_sums[1].item() == math.inf
    for one, other in zip(both.gradients, alone.gradients, strict=True):
        assert torch.equal(one, other)
    nothing = solve(trained, 0.0 * divergence_term(target))
    assert nothing.loss.item() == 0 and not any(gradient.any() for gradient in nothing.gradients)


class Averaged(CrossEntropyTerm):
    """A term that reduces by itself, as a loss from elsewhere might."""

    def per_token(self, log_probs: torch.Tensor, target: None, rows: slice) -> torch.Tensor:
        return super().per_token(log_probs, target, rows).mean()


def mismatches():
    trained, target = make_outputs(seed=0), make_outputs(seed=1)
    fits = divergence_term(target)
    yield "hidden states .* and head", with_head(trained, weight=torch.zeros(VOCABULARY, 5)), fits
    yield "not gathered", with_head(trained, weight=torch.empty(0)), fits
    yield "bias", with_head(trained, bias=torch.zeros(VOCABULARY + 1)), fits
    yield "trained: a shared vocabulary of 14", with_head(trained, vocabulary_size=14), fits
    yield "vocabulary of 0", with_head(trained, vocabulary_size=0), fits
    yield "target has a vocabulary of 13, the trained model 12", with_head(trained, vocabulary_size=12), fits
    wide = make_outputs(seed=0, vocabulary=14)
    yield "target: a shared vocabulary of 14", wide, divergence_term(with_head(target, vocabulary_size=14))
    yield "target has 11 positions", trained, divergence_term(make_outputs(seed=1, rows=11))
    yield "target has 1 positions", trained, divergence_term(make_outputs(seed=1, rows=1))
    yield "labels", trained, cross_entropy(LABELS[:9])
    yield "labels", trained, CrossEntropyTerm(labels=LABELS.int())
    yield r"gave \[\] for 4 positions", trained, Averaged(labels=LABELS)


@pytest.mark.parametrize(("message", "trained", "term"), list(mismatches()))
def test_what_does_not_fit_is_refused(message: str, trained: Outputs, term) -> None:
    with pytest.raises(ValueError, match=message):
        fused(trained, term)


def test_a_loss_needs_a_term_and_a_chunk() -> None:
    with pytest.raises(ValueError, match="without a term"):
        fused(make_outputs(seed=0))
    with pytest.raises(ValueError, match="chunk_size is 0"):
        fused_loss(make_outputs(seed=0), [cross_entropy(LABELS)], scale=SCALE, chunk_size=0)
