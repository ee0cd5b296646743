"""LoRA in plain torch: W + s·B·A is put in the place of W, whole logits, float64, SGD.

Written from Eq. 3 of arXiv 2106.09685 and Eq. 1 and 4 of arXiv 2402.12842; shares no code with the project or peft.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from tests.reference.plain_promptkd import Row, kl


@dataclass
class Adapters:
    """A [r, inputs] and B [outputs, r] beside the weights of these names; leaves that are trained."""

    scale: float
    matrices: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    stored_transposed: bool = False
    """As GPT-2 stores its weights: [inputs, outputs]."""

    def merged(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """The weights that replace the model's own."""
        merged = {}
        for name, (a, b) in self.matrices.items():
            update = self.scale * (b @ a)
            merged[name] = model.get_parameter(name).detach() + (update.T if self.stored_transposed else update)
        return merged

    @property
    def leaves(self) -> list[Tensor]:
        return [matrix for pair in self.matrices.values() for matrix in pair]


def log_probs_of(model: PreTrainedModel, row: Row, *, vocabulary: int, adapters: Adapters | None = None) -> Tensor:
    """log p(y_t | …) for every response token of one row alone [T, vocabulary]."""
    weights = {} if adapters is None else adapters.merged(model)
    ids = torch.tensor([row.prompt + row.response])
    logits = functional_call(model, weights, kwargs={"input_ids": ids}).logits[0]
    start = len(row.prompt) - 1
    return logits[start : start + len(row.response), :vocabulary].log_softmax(-1)


def train(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    batches: list[list[Row]],
    *,
    vocabulary: int,
    rate: float,
    teacher_adapters: Adapters | None,
    student_adapters: Adapters | None,
) -> dict[str, list[float]]:
    """PromptKD with adapters in the place of the prompt, or GKD where the teacher has none; in place on the leaves.

    The student's own weights are trained where it has no adapters. Returns the losses of each step.
    """
    teacher.requires_grad_(False)
    trained = list(student.parameters()) if student_adapters is None else student_adapters.leaves
    losses: dict[str, list[float]] = {"student_kd": [], "prompt_kd": []}
    for rows in batches:
        tokens = sum(len(row.response) for row in rows)
        if teacher_adapters is not None:
            loss = torch.zeros((), dtype=torch.float64)
            for row in rows:
                with torch.no_grad():
                    guide = log_probs_of(student, row, vocabulary=vocabulary, adapters=student_adapters)
                loss = loss + kl(log_probs_of(teacher, row, vocabulary=vocabulary, adapters=teacher_adapters), guide)
            _descend(loss / tokens, teacher_adapters.leaves, rate=rate)
            losses["prompt_kd"].append(loss.item() / tokens)
        loss = torch.zeros((), dtype=torch.float64)
        for row in rows:
            with torch.no_grad():
                target = log_probs_of(teacher, row, vocabulary=vocabulary, adapters=teacher_adapters)
            loss = loss + kl(log_probs_of(student, row, vocabulary=vocabulary, adapters=student_adapters), target)
        _descend(loss / tokens, trained, rate=rate)
        losses["student_kd"].append(loss.item() / tokens)
    return losses


def _descend(loss: Tensor, leaves: list[Tensor], *, rate: float) -> None:
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    with torch.no_grad():
        for leaf, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                leaf -= rate * gradient
