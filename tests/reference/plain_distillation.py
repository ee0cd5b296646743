"""KD, SeqKD, GKD and DistiLLM in plain torch: one process, whole logits, float64, SGD.

Written from the papers' equations; shares no code with the project. What differs between the methods are the
sequences, which are given, and the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.reference.plain_losses import plain_cross_entropy
from tests.reference.plain_promptkd import Row


@dataclass
class Loss:
    """divergence_weight · D(p^(1/T), q^(1/T)) + likelihood_weight · CE, and data_weight · CE on other sequences."""

    divergence: Callable[[Tensor, Tensor], Tensor]
    divergence_weight: float = 1.0
    likelihood_weight: float = 0.0
    data_weight: float = 0.0
    temperature: float = 1.0


def train(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    batches: list[list[Row]],
    *,
    loss: Loss,
    data: list[list[Row]] | None = None,
    vocabulary: int,
    rate: float,
) -> dict[str, list[float]]:
    """Run the steps in place on `student`; returns the mean divergence and cross entropy of each step."""
    means: dict[str, list[float]] = {"student_kd": [], "cross_entropy": []}
    for number, rows in enumerate(batches):
        divergence, likelihood, tokens = _sums(teacher, student, rows, loss=loss, vocabulary=vocabulary)
        total = (loss.divergence_weight * divergence + loss.likelihood_weight * likelihood) / tokens
        if data is not None:
            _, likelihood, data_tokens = _sums(teacher, student, data[number], loss=loss, vocabulary=vocabulary)
            total = total + loss.data_weight * likelihood / data_tokens
            means["cross_entropy"].append(likelihood.item() / data_tokens)
        else:
            means["cross_entropy"].append(likelihood.item() / tokens)
        means["student_kd"].append(divergence.item() / tokens)
        parameters = list(student.parameters())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= rate * gradient
    return means


def _sums(
    teacher: PreTrainedModel, student: PreTrainedModel, rows: list[Row], *, loss: Loss, vocabulary: int
) -> tuple[Tensor, Tensor, int]:
    """Sums of divergence and cross entropy over the response tokens, and how many there are."""
    divergence = likelihood = torch.zeros((), dtype=torch.float64)
    for row in rows:
        if not row.response:
            continue
        with torch.no_grad():
            target = _logits(teacher, row, vocabulary=vocabulary)
        trained = _logits(student, row, vocabulary=vocabulary)
        p, q = ((logits / loss.temperature).log_softmax(-1) for logits in (target, trained))
        divergence = divergence + loss.divergence(p, q).sum()
        likelihood = likelihood + plain_cross_entropy(trained.log_softmax(-1), torch.tensor(row.response)).sum()
    return divergence, likelihood, sum(len(row.response) for row in rows)


def _logits(model: PreTrainedModel, row: Row, *, vocabulary: int) -> Tensor:
    """Logits that predict each response token of one row alone [T, vocabulary]."""
    start = len(row.prompt) - 1
    logits = model(torch.tensor([row.prompt + row.response])).logits[0]
    return logits[start : start + len(row.response), :vocabulary]
