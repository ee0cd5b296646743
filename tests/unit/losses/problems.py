"""Small random problems for the fused loss, and their solution by the float64 oracle."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd.losses.divergences import DIVERGENCES
from kd.losses.fused import FusedLoss, fused_loss
from kd.losses.outputs import UNCHANGED, Head, LogitMap, Outputs
from kd.losses.terms import CrossEntropyTerm, DivergenceTerm, Term
from tests.reference.plain_losses import PLAIN_DIVERGENCES, plain_cross_entropy, plain_log_probs

NUM_ROWS = 10
VOCABULARY = 13
SCALE = 0.3
LABELS = torch.tensor([0, 3, 12, 5, 5, 1, 7, 2, 9, 11])


def make_outputs(
    *,
    seed: int,
    rows: int = NUM_ROWS,
    vocabulary: int = VOCABULARY,
    padding: int = 0,
    hidden_size: int = 6,
    bias: bool = False,
    trainable: bool = True,
    dtype: torch.dtype = torch.float32,
    logit_map: LogitMap = UNCHANGED,
) -> Outputs:
    """Random hidden states and a head with `padding` more rows; every tensor requires a gradient if `trainable`."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(trainable)

    head_rows = vocabulary + padding
    hidden, weight = leaf(rows, hidden_size), leaf(head_rows, hidden_size)
    head = Head(weight=weight, bias=leaf(head_rows) if bias else None, vocabulary_size=vocabulary, logit_map=logit_map)
    return Outputs(hidden=hidden, head=head, token_indices=torch.arange(rows) % 4)


def divergence_term(target: Outputs, *, name: str = "reverse_kl", weight: float = 1.0) -> DivergenceTerm:
    return DivergenceTerm(divergence=DIVERGENCES[name], target=target, weight=weight)


def tensors(outputs: Outputs) -> list[Tensor]:
    """Hidden states, head weight and, where there is one, bias."""
    parts = (outputs.hidden, outputs.head.weight, outputs.head.bias)
    return [tensor for tensor in parts if tensor is not None]


@dataclass
class Solution:
    """Loss, unweighted sums of the terms, and one gradient for each tensor that was asked for."""

    loss: Tensor
    term_sums: Tensor
    gradients: list[Tensor]


def differentiate(result: FusedLoss, leaves: Sequence[Tensor]) -> Solution:
    return Solution(result.loss.detach(), result.term_sums, list(torch.autograd.grad(result.loss, leaves)))


def solve(trained: Outputs, *terms: Term, scale: float = SCALE, chunk_size: int = 4) -> Solution:
    """The fused loss and its gradients."""
    return differentiate(fused_loss(trained, terms, scale=scale, chunk_size=chunk_size), tensors(trained))


def oracle(trained: Outputs, *terms: Term, scale: float = SCALE) -> Solution:
    """The same loss in float64 from full [N, V] tensors."""
    log_probs = oracle_log_probs(trained)
    sums = []
    for term in terms:
        if isinstance(term, CrossEntropyTerm):
            sums.append(plain_cross_entropy(log_probs, term.labels).sum())
            continue
        assert isinstance(term, DivergenceTerm)
        target = oracle_log_probs(term.target).detach()
        (name,) = [name for name, divergence in DIVERGENCES.items() if divergence is term.divergence]
        sums.append(PLAIN_DIVERGENCES[name](target, log_probs).sum())
    return oracle_solution(trained, *terms, sums=sums, scale=scale)


def oracle_solution(trained: Outputs, *terms: Term, sums: Sequence[Tensor], scale: float = SCALE) -> Solution:
    """The oracle's loss and gradients for given sums of the terms."""
    loss = scale * sum(term.weight * value for term, value in zip(terms, sums, strict=True))
    gradients = list(torch.autograd.grad(loss, tensors(trained)))
    return Solution(loss.detach(), torch.stack(list(sums)).detach(), gradients)


def oracle_log_probs(outputs: Outputs) -> Tensor:
    head = outputs.head
    return plain_log_probs(
        outputs.hidden,
        head.weight,
        head.bias,
        vocabulary_size=head.vocabulary_size,
        scale=head.logit_map.scale,
        cap=head.logit_map.cap,
    )


def assert_same(ours: Solution, expected: Solution, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    pairs = [(ours.loss, expected.loss), (ours.term_sums, expected.term_sums)]
    pairs += list(zip(ours.gradients, expected.gradients, strict=True))
    for one, other in pairs:
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)
