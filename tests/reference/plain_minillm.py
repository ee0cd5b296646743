"""MiniLLM in plain torch: one process, one row at a time, whole logits, float64, SGD.

Written from §2 and §3 of arXiv 2306.08543, with the choices that docs/deviations.md tells of; shares no code with
the project.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass
class Settings:
    """The paper's symbols."""

    alpha: float
    gamma: float
    epsilon: float
    reward_scale: float
    length_normalized: bool
    whitened: bool
    corpus_ratio: float
    corpus_weight: float


@dataclass
class Sample:
    """A prompt, its sampled response, and the probabilities that both models gave it then."""

    prompt: list[int]
    response: list[int]
    student: list[float]
    teacher: list[float]


def log_probs_of(model: PreTrainedModel, prompt: list[int], response: list[int], *, vocabulary: int) -> Tensor:
    """log-probabilities [T, vocabulary] at every response token of one row alone."""
    logits = model(torch.tensor([prompt + response])).logits[0]
    return logits[len(prompt) - 1 : len(prompt) + len(response) - 1, :vocabulary].log_softmax(-1)


def sample_of(
    teacher: PreTrainedModel, student: PreTrainedModel, prompt: list[int], response: list[int], *, vocabulary: int
) -> Sample:
    with torch.no_grad():
        both = [log_probs_of(model, prompt, response, vocabulary=vocabulary) for model in (student, teacher)]
    of_tokens = [[row[token].item() for row, token in zip(rows, response, strict=True)] for rows in both]
    return Sample(prompt=prompt, response=response, student=of_tokens[0], teacher=of_tokens[1])


def returns_of(samples: list[Sample], *, settings: Settings) -> list[list[float]]:
    """R_{t+1} of every token of every sample of a global batch, whitened over all of them."""
    returns = []
    for sample in samples:
        earned = [(p - q) / settings.reward_scale for p, q in zip(sample.teacher, sample.student, strict=True)]
        length = len(earned)
        returns.append([])
        for t in range(length):
            later = sum(settings.gamma ** (s - t - 1) * earned[s] for s in range(t + 1, length))
            divide = settings.length_normalized and t + 1 < length
            returns[-1].append(later / (length - t - 1) if divide else later)
    if not settings.whitened:
        return returns
    values = [value for row in returns for value in row]
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    return [[(value - mean) / math.sqrt(variance + 1e-8) for value in row] for row in returns]


def global_batch_losses(
    teacher: PreTrainedModel, student: PreTrainedModel, samples: list[Sample], *, settings: Settings, vocabulary: int
) -> dict[str, Tensor]:
    """Token means of the clipped policy gradient and of the single step."""
    long_part = single = torch.zeros((), dtype=torch.float64)
    for sample, returns in zip(samples, returns_of(samples, settings=settings), strict=True):
        q = log_probs_of(student, sample.prompt, sample.response, vocabulary=vocabulary)
        with torch.no_grad():
            p = log_probs_of(teacher, sample.prompt, sample.response, vocabulary=vocabulary)
        single = single + (q.exp() * (q - p)).sum()
        for t, token in enumerate(sample.response):
            old, guided = math.exp(sample.student[t]), math.exp(sample.teacher[t])
            weight = old / (settings.alpha * guided + (1 - settings.alpha) * old)
            ratio = weight * q[t, token].exp() / old
            clipped = ratio.clip(1 - settings.epsilon, 1 + settings.epsilon)
            long_part = long_part - torch.minimum(ratio * returns[t], clipped * returns[t])
    tokens = sum(len(sample.response) for sample in samples)
    return {"policy_gradient": long_part / tokens, "student_kd": single / tokens}


def corpus_losses(
    teacher: PreTrainedModel, student: PreTrainedModel, blocks: list[list[int]], *, vocabulary: int
) -> dict[str, Tensor]:
    """Token means of cross entropy and KL(p‖q) on a global batch of text; a block's first token is context alone."""
    likelihood = divergence = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        q = log_probs_of(student, block[:1], block[1:], vocabulary=vocabulary)
        with torch.no_grad():
            p = log_probs_of(teacher, block[:1], block[1:], vocabulary=vocabulary)
        divergence = divergence + (p.exp() * (p - q)).sum()
        for t, token in enumerate(block[1:]):
            likelihood = likelihood - q[t, token]
    tokens = sum(len(block) - 1 for block in blocks)
    return {"corpus_cross_entropy": likelihood / tokens, "corpus_kd": divergence / tokens}


def train(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    collections: list[list[tuple[list[int], list[int]]]],
    steps: list[tuple[int, list[int]]],
    corpus: list[list[list[int]]],
    *,
    settings: Settings,
    vocabulary: int,
    rate: float,
) -> list[dict[str, float]]:
    """Train `student` in place; returns the losses of each step.

    Args:
        collections: prompts and responses that are sampled together.
        steps: for each optimizer step the collection and the indices in it that the step trains on.
        corpus: blocks of text for each step, or nothing at all.
    """
    teacher.requires_grad_(False)
    losses: list[dict[str, float]] = []
    current, samples = -1, []
    for number, (collection, indices) in enumerate(steps):
        if collection != current:
            current = collection
            samples = [sample_of(teacher, student, *pair, vocabulary=vocabulary) for pair in collections[collection]]
        batch = [samples[index] for index in indices]
        parts = global_batch_losses(teacher, student, batch, settings=settings, vocabulary=vocabulary)
        loss = parts["policy_gradient"] + parts["student_kd"]
        if corpus:
            parts |= corpus_losses(teacher, student, corpus[number], vocabulary=vocabulary)
            text = (1 - settings.corpus_ratio) * parts["corpus_cross_entropy"]
            text = text + settings.corpus_ratio * parts["corpus_kd"]
            loss = loss + settings.corpus_weight * text
        parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= rate * gradient
        losses.append({name: value.item() for name, value in parts.items()})
    return losses
