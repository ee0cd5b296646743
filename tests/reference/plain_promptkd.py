"""PromptKD in plain torch: one process, one batch per step, whole logits, float64, SGD.

Written from Algorithm 1 and Eq. 1-4 of arXiv 2402.12842; shares no code with the project.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass
class Row:
    """A prompt and its fixed pseudo-target."""

    prompt: list[int]
    response: list[int]


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


def train(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    prompt: Tensor,
    windows: list[list[Row]],
    *,
    num_steps: int,
    vocabulary: int,
    prompt_rate: float,
    student_rate: float,
    clip: float = 0.0,
) -> dict[str, list[float]]:
    """Run the steps in place on `student` and `prompt` (a leaf); returns the losses of each step."""
    teacher.requires_grad_(False)
    losses: dict[str, list[float]] = {"student_kd": [], "prompt_kd": [], "prompt_regularization": []}
    for k, rows in enumerate(windows, start=1):
        tokens = sum(len(row.response) for row in rows)
        weight = (num_steps - k) / num_steps
        kd = regularization = torch.zeros((), dtype=torch.float64)
        for row in rows:
            prompted = log_probs_of(teacher, row, vocabulary=vocabulary, prompt=prompt)
            with torch.no_grad():
                guided = log_probs_of(student, row, vocabulary=vocabulary)
                plain = log_probs_of(teacher, row, vocabulary=vocabulary)
            kd = kd + kl(prompted, guided)
            regularization = regularization + kl(prompted, plain)
        (gradient,) = torch.autograd.grad((kd + weight * regularization) / tokens, prompt)
        _descend([prompt], [gradient], rate=prompt_rate, clip=clip)

        distillation = torch.zeros((), dtype=torch.float64)
        for row in rows:
            with torch.no_grad():
                target = log_probs_of(teacher, row, vocabulary=vocabulary, prompt=prompt)
            distillation = distillation + kl(log_probs_of(student, row, vocabulary=vocabulary), target)
        parameters = list(student.parameters())
        gradients = torch.autograd.grad(distillation / tokens, parameters, allow_unused=True)
        _descend(parameters, gradients, rate=student_rate, clip=clip)
        losses["prompt_kd"].append(kd.item() / tokens)
        losses["prompt_regularization"].append(regularization.item() / tokens)
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
