"""The chunked loss: values and gradients against the oracle, vocabularies, heads, several terms, edges."""

import math
from dataclasses import replace

import pytest
import torch

from kd.losses.divergences import reverse_kl
from kd.losses.fused import chunk_rows, fused_loss
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.terms import DivergenceTerm, Projection
from tests.unit.losses.problems import (
    DIRECTIONS,
    NUM_ROWS,
    VOCABULARY,
    answer,
    assert_same,
    divergence_term,
    oracle,
    projection,
    tensors,
)

SETTINGS = {"vocabulary_size": VOCABULARY, "scale": 0.3, "chunk_size": 4}
LABELS = torch.tensor([0, 3, 12, 5, 5, 1, 7, 2, 9, 11])


def run(trained: Projection, *terms, **changes):
    return answer(fused_loss(trained, terms, **(SETTINGS | changes)), tensors(trained))


def expected(trained: Projection, *terms):
    return oracle(trained, terms, vocabulary_size=VOCABULARY, scale=SETTINGS["scale"])


def test_hand_numbers() -> None:
    """One position, two words: the trained model gives 3/4 and 1/4, the target one half each."""
    head = torch.eye(2)
    trained = Projection(hidden=torch.tensor([[math.log(3.0), 0.0]], requires_grad=True), weight=head)
    target = Projection(hidden=torch.zeros(1, 2), weight=head)
    result = fused_loss(trained, [divergence_term(target)], vocabulary_size=2, scale=2.0, chunk_size=1)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert result.loss.item() == pytest.approx(2 * kl, rel=1e-6)
    assert result.term_sums.tolist() == pytest.approx([kl], rel=1e-6)
    # d KL / d logit_v = p_v (log p_v - log q_v - KL)
    gradient = [[2 * 0.75 * (math.log(1.5) - kl), 2 * 0.25 * (math.log(0.5) - kl)]]
    torch.testing.assert_close(torch.autograd.grad(result.loss, trained.hidden)[0], torch.tensor(gradient))


@pytest.mark.parametrize("chunk_size", [1, 7, NUM_ROWS, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_matches_the_oracle_for_every_chunk_size(name: str, bias: bool, chunk_size: int) -> None:
    trained = projection(seed=0, bias=bias)
    term = divergence_term(projection(seed=1, hidden_size=8, bias=bias), name=name)
    assert_same(run(trained, term, chunk_size=chunk_size), expected(trained, term))


def test_cross_entropy_matches_the_oracle() -> None:
    trained = projection(seed=0)
    term = LikelihoodTerm(labels=LABELS, weight=0.7)
    assert_same(run(trained, term), expected(trained, term))


def test_several_terms_are_the_weighted_sum_of_each() -> None:
    trained = projection(seed=0)
    terms = [
        divergence_term(projection(seed=1, hidden_size=8), weight=1.0),
        divergence_term(projection(seed=2), name="forward_kl", weight=0.25),
        LikelihoodTerm(labels=LABELS, weight=0.5),
    ]
    together = run(trained, *terms)
    assert_same(together, expected(trained, *terms))
    singles = [run(trained, term) for term in terms]
    torch.testing.assert_close(together.loss, sum(single.loss for single in singles))
    torch.testing.assert_close(together.term_sums, torch.cat([single.term_sums for single in singles]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", DIRECTIONS)
def test_gradients_equal_finite_differences(name: str, bias: bool) -> None:
    trained = projection(seed=0, rows=3, vocabulary=7, hidden_size=4, bias=bias, dtype=torch.float64)
    target = projection(seed=1, rows=3, vocabulary=6, hidden_size=2, trainable=False, dtype=torch.float64)
    terms = [divergence_term(target, name=name), LikelihoodTerm(labels=torch.tensor([0, 4, 2]), weight=0.5)]

    def loss() -> torch.Tensor:
        return fused_loss(trained, terms, vocabulary_size=5, scale=0.3, chunk_size=2).loss

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
    trained = projection(seed=0)
    loss = fused_loss(trained, [divergence_term(projection(seed=1))], **SETTINGS).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", DIRECTIONS)
def test_padding_rows_of_both_heads_have_no_part(name: str) -> None:
    """151,936 against 152,064 rows in small: as if both heads ended with the shared vocabulary."""
    trained = projection(seed=0, vocabulary=VOCABULARY + 3, bias=True)
    target = projection(seed=1, vocabulary=VOCABULARY + 5)
    cut = Projection(
        hidden=trained.hidden,
        weight=trained.weight[:VOCABULARY].detach().requires_grad_(),
        bias=trained.bias[:VOCABULARY].detach().requires_grad_(),
    )
    padded = run(trained, divergence_term(target, name=name))
    plain = run(cut, divergence_term(replace(target, weight=target.weight[:VOCABULARY]), name=name))
    for gradient in padded.gradients[1:]:
        assert torch.equal(gradient[VOCABULARY:], torch.zeros_like(gradient[VOCABULARY:]))
    padded.gradients[1:] = [gradient[:VOCABULARY] for gradient in padded.gradients[1:]]
    assert_same(padded, plain, rtol=0, atol=1e-7)


def test_a_tied_head_collects_both_of_its_gradients() -> None:
    ids = torch.arange(NUM_ROWS) % 4
    target = projection(seed=1, trainable=False)
    results = []
    for loss_of in (run_loss, oracle_loss):
        embedding = projection(seed=0).weight.detach().clone().requires_grad_()
        trained = Projection(hidden=torch.tanh(embedding[ids]), weight=embedding)
        loss_of(trained, divergence_term(target)).backward()
        results.append(embedding.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def run_loss(trained: Projection, term: DivergenceTerm):
    return fused_loss(trained, [term], **SETTINGS).loss


def oracle_loss(trained: Projection, term: DivergenceTerm):
    p, q = ((part.hidden @ part.weight.T).log_softmax(-1) for part in (trained, term.target))
    return SETTINGS["scale"] * (p.exp() * (p - q)).sum()


def test_only_what_requires_a_gradient_gets_one() -> None:
    frozen = replace(projection(seed=0), weight=projection(seed=0).weight.detach())
    target = projection(seed=1)
    fused_loss(frozen, [divergence_term(target)], **SETTINGS).loss.backward()
    assert frozen.weight.grad is None
    torch.testing.assert_close(frozen.hidden.grad, run(projection(seed=0), divergence_term(target)).gradients[0])
    assert target.hidden.grad is None and target.weight.grad is None

    head_only = replace(projection(seed=0), hidden=projection(seed=0).hidden.detach())
    fused_loss(head_only, [divergence_term(target)], **SETTINGS).loss.backward()
    torch.testing.assert_close(head_only.weight.grad, run(projection(seed=0), divergence_term(target)).gradients[1])


def test_the_head_may_be_released_before_backward() -> None:
    """Under ZeRO-3 a gathered head is emptied again after the forward pass."""
    trained, target = projection(seed=0), projection(seed=1, trainable=False)
    gradients = run(trained, divergence_term(target)).gradients
    trained = replace(trained, weight=trained.weight.detach().clone())
    loss = fused_loss(trained, [divergence_term(target)], **SETTINGS).loss
    trained.weight.data, target.weight.data = torch.empty(0), torch.empty(0)
    assert torch.equal(torch.autograd.grad(loss, trained.hidden)[0], gradients[0])


@pytest.mark.parametrize("how", ["no_grad", "frozen"])
def test_without_gradients_only_values_are_computed(how: str) -> None:
    def fail_if_differentiated(trained, target):
        assert not torch.is_grad_enabled() and not trained.requires_grad
        return reverse_kl(trained, target)

    target = projection(seed=1)
    term = DivergenceTerm(divergence=fail_if_differentiated, target=target)
    with torch.set_grad_enabled(how != "no_grad"):
        result = fused_loss(projection(seed=0, trainable=how != "frozen"), [term], **SETTINGS)
    reference = run(projection(seed=0), divergence_term(target))
    assert not result.loss.requires_grad
    assert torch.equal(result.loss, reference.loss) and torch.equal(result.term_sums, reference.term_sums)


def test_no_position_gives_a_zero_loss_with_zero_gradients() -> None:
    trained = projection(seed=0, rows=0, bias=True)
    terms = [
        divergence_term(projection(seed=1, rows=0)),
        LikelihoodTerm(labels=torch.empty(0, dtype=torch.int64)),
    ]
    result = fused_loss(trained, terms, **SETTINGS)
    assert result.loss.grad_fn is not None and result.loss.item() == 0 and result.term_sums.tolist() == [0, 0]
    result.loss.backward()
    for tensor in tensors(trained):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


def test_a_term_of_weight_zero_is_measured_and_nothing_else() -> None:
    """The last step of a linear schedule: even an infinite term then leaves loss and gradients finite."""
    trained, target = projection(seed=0), projection(seed=1)
    infinite = replace(target, bias=torch.cat([torch.zeros(VOCABULARY - 1), torch.tensor([-math.inf])]))
    alone = run(trained, divergence_term(target))
    both = run(trained, divergence_term(target), divergence_term(infinite, weight=0.0))
    assert torch.equal(both.loss, alone.loss) and both.term_sums[1].item() == math.inf
    for one, other in zip(both.gradients, alone.gradients, strict=True):
        assert torch.equal(one, other)
    nothing = run(trained, divergence_term(target, weight=0.0))
    assert nothing.loss.item() == 0 and not any(gradient.any() for gradient in nothing.gradients)


def test_chunk_rows_fill_the_budget() -> None:
    assert chunk_rows(50_000, byte_budget=4 * 50_000 * 10) == 10
    assert chunk_rows(50_000, byte_budget=4 * 50_000 * 10 - 1) == 9
    assert chunk_rows(50_000, byte_budget=1) == 1
    assert chunk_rows(2**18) == 128


class Averaged(LikelihoodTerm):
    """A term that reduces on its own, as a loss from elsewhere might."""

    def per_token(self, log_probs: torch.Tensor, target: None, rows: slice) -> torch.Tensor:
        return super().per_token(log_probs, target, rows).mean()


def mismatches():
    trained, target = projection(seed=0), projection(seed=1)
    fits = divergence_term(target)
    yield "head", replace(trained, weight=torch.zeros(VOCABULARY, 5)), fits, {}
    yield "gathered", replace(trained, weight=torch.empty(0)), fits, {}
    yield "bias", replace(trained, bias=torch.zeros(VOCABULARY + 1)), fits, {}
    yield "trained: a shared vocabulary of 14", trained, fits, {"vocabulary_size": 14}
    padded = projection(seed=0, vocabulary=14)
    yield "target: a shared vocabulary of 14", padded, fits, {"vocabulary_size": 14}
    yield "vocabulary of 0", trained, fits, {"vocabulary_size": 0}
    yield "target has 11 positions", trained, divergence_term(projection(seed=1, rows=11)), {}
    yield "target has 1 positions", trained, divergence_term(projection(seed=1, rows=1)), {}
    yield "labels", trained, LikelihoodTerm(labels=LABELS[:9]), {}
    yield "labels", trained, LikelihoodTerm(labels=LABELS.int()), {}
    yield "chunk_size is 0", trained, fits, {"chunk_size": 0}
    yield r"gave \[\] for 4 positions", trained, Averaged(labels=LABELS), {}


@pytest.mark.parametrize(("message", "trained", "term", "changes"), list(mismatches()))
def test_what_does_not_fit_is_refused(message: str, trained: Projection, term, changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=message):
        fused_loss(trained, [term], **(SETTINGS | changes))


def test_a_loss_needs_a_term() -> None:
    with pytest.raises(ValueError, match="without a term"):
        fused_loss(projection(seed=0), [], **SETTINGS)
