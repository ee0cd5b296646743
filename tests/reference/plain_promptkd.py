"""PromptKD in plain torch: one process, one batch per step, whole logits, float64, SGD.

Written from Algorithm 1 and Eq. 1-4 of arXiv 2402.12842; shares no code with the project.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass
class Row:
    """A prompt and its fixed response."""

    prompt: list[int]
    response: list[int]
    truth: list[int] | None = None
    """What the prompt is tuned on, where that is another response."""

    @property
    def shown(self) -> "Row":
        """The row with the response that the prompt is tuned on."""
        return self if self.truth is None else Row(self.prompt, self.truth)


def log_probs_of(model: PreTrainedModel, row: Row, *, vocabulary: int, prompt: Tensor | None = None) -> Tensor:
    """log p(y_t | …) for every response token of one row alone [T, vocabulary], without any padding."""
    ids = torch.tensor([row.prompt + row.response])
    embeds = model.get_input_embeddings()(ids)
    offset = 0
    if prompt is not None:
        embeds = torch.cat([prompt[None], embeds], dim=1)
        offset = len(prompt)
    logits = model(inputs_embeds=embeds).logits[0]
    start = offset + len(row.prompt) - 1
    return logits[start : start + len(row.response), :vocabulary].log_softmax(-1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


def reverse_kl(trained: Tensor, target: Tensor) -> Tensor:
    return kl(trained, target)


def forward_kl(trained: Tensor, target: Tensor) -> Tensor:
    return kl(target, trained)


@dataclass
class Divergences:
    """Of (trained, target) log-probabilities, in Eq. 1, 2 and 4."""

    kd: Callable[[Tensor, Tensor], Tensor] = reverse_kl
    regularization: Callable[[Tensor, Tensor], Tensor] = reverse_kl
    student: Callable[[Tensor, Tensor], Tensor] = reverse_kl


def train(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    prompt: Tensor,
    batches: list[list[Row]],
    *,
    num_steps: int,
    vocabulary: int,
    prompt_rate: float,
    student_rate: float,
    clip: float = 0.0,
    divergences: Divergences | None = None,
    tuned_on: list[list[int]] | None = None,
) -> dict[str, list[float]]:
    """Run the steps in place on `student` and `prompt` (a leaf); returns the losses of each step.

    Args:
        prompt: [M, H], or [groups, M, H] with one for each group of rows.
        tuned_on: indices of the rows in each step that the prompt is tuned on, none in some steps; default: all rows.
    """
    teacher.requires_grad_(False)
    of = divergences or Divergences()
    losses: dict[str, list[float]] = {"student_kd": [], "prompt_kd": [], "prompt_regularization": []}
    for k, rows in enumerate(batches, start=1):
        tokens = sum(len(row.response) for row in rows)
        shown = rows if tuned_on is None else [rows[index] for index in tuned_on[k - 1]]
        shown_tokens = sum(len(row.shown.response) for row in shown)
        weight = (num_steps - k) / num_steps
        kd = regularization = torch.zeros((), dtype=torch.float64)
        for row in shown:
            prompted = log_probs_of(teacher, row.shown, vocabulary=vocabulary, prompt=prompt)
            with torch.no_grad():
                guided = log_probs_of(student, row.shown, vocabulary=vocabulary)
                plain = log_probs_of(teacher, row.shown, vocabulary=vocabulary)
            kd = kd + of.kd(prompted, guided)
            regularization = regularization + of.regularization(prompted, plain)
        if shown:
            (gradient,) = torch.autograd.grad((kd + weight * regularization) / shown_tokens, prompt)
            _descend([prompt], [gradient], rate=prompt_rate, clip=clip)
            losses["prompt_kd"].append(kd.item() / shown_tokens)
            if weight != 0:
                losses["prompt_regularization"].append(regularization.item() / shown_tokens)

        distillation = torch.zeros((), dtype=torch.float64)
        for row in rows:
            with torch.no_grad():
                target = log_probs_of(teacher, row, vocabulary=vocabulary, prompt=prompt)
            distillation = distillation + of.student(log_probs_of(student, row, vocabulary=vocabulary), target)
        parameters = list(student.parameters())
        gradients = torch.autograd.grad(distillation / tokens, parameters, allow_unused=True)
        _descend(parameters, gradients, rate=student_rate, clip=clip)
        losses["student_kd"].append(distillation.item() / tokens)
    return losses


def _descend(parameters: list[Tensor], gradients: tuple[Tensor | None, ...], *, rate: float, clip: float) -> None:
    present = [gradient for gradient in gradients if gradient is not None]
    norm = torch.sqrt(sum(gradient.square().sum() for gradient in present))
    factor = min(1.0, clip / norm.item()) if clip else 1.0
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= rate * factor * gradient
