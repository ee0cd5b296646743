"""Small random problems for the chunked loss, and the oracle's answer to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd.losses.divergences import DIVERGENCES
from kd.losses.fused import FusedLoss
from kd.losses.likelihood import LikelihoodTerm
from kd.losses.terms import DivergenceTerm, Projection, Term
from tests.reference.plain_losses import PLAIN_DIVERGENCES, plain_cross_entropy, plain_log_probs

NUM_ROWS = 10
VOCABULARY = 13
DIRECTIONS = tuple(DIVERGENCES)


def projection(
    *,
    seed: int,
    rows: int = NUM_ROWS,
    vocabulary: int = VOCABULARY,
    hidden_size: int = 6,
    bias: bool = False,
    trainable: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Projection:
    """Random hidden states and head; every tensor requires a gradient if `trainable`."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(trainable)

    return Projection(
        hidden=leaf(rows, hidden_size),
        weight=leaf(vocabulary, hidden_size),
        bias=leaf(vocabulary) if bias else None,
    )


def divergence_term(target: Projection, *, name: str = "reverse_kl", weight: float = 1.0) -> DivergenceTerm:
    return DivergenceTerm(divergence=DIVERGENCES[name], target=target, weight=weight)


def tensors(part: Projection) -> list[Tensor]:
    """The projection's tensors: hidden, weight and, where there is one, bias."""
    return [tensor for tensor in (part.hidden, part.weight, part.bias) if tensor is not None]


@dataclass
class Answer:
    """Loss, unweighted sums of the terms, and one gradient for each tensor that was asked for."""

    loss: Tensor
    term_sums: Tensor
    gradients: list[Tensor]


def answer(result: FusedLoss, leaves: Sequence[Tensor]) -> Answer:
    return Answer(result.loss.detach(), result.term_sums, list(torch.autograd.grad(result.loss, leaves)))


def oracle(trained: Projection, terms: Sequence[Term], *, vocabulary_size: int, scale: float) -> Answer:
    """The same loss in float64 from whole [N, V] tensors."""
    log_probs = _plain(trained, vocabulary_size)
    sums = []
    for term in terms:
        if isinstance(term, LikelihoodTerm):
            sums.append(plain_cross_entropy(log_probs, term.labels).sum())
            continue
        assert isinstance(term, DivergenceTerm)
        target = _plain(term.target, vocabulary_size).detach()
        (name,) = [name for name, divergence in DIVERGENCES.items() if divergence is term.divergence]
        sums.append(PLAIN_DIVERGENCES[name](target, log_probs).sum())
    loss = scale * sum(term.weight * value for term, value in zip(terms, sums, strict=True))
    gradients = list(torch.autograd.grad(loss, tensors(trained)))
    return Answer(loss.detach(), torch.stack(sums).detach(), gradients)


def assert_same(ours: Answer, expected: Answer, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    pairs = [(ours.loss, expected.loss), (ours.term_sums, expected.term_sums)]
    pairs += list(zip(ours.gradients, expected.gradients, strict=True))
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


def _plain(part: Projection, vocabulary_size: int) -> Tensor:
    return plain_log_probs(part.hidden, part.weight, part.bias, vocabulary_size=vocabulary_size)
