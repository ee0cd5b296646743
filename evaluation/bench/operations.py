"""Counted operations and bytes of a training step, from the shapes of the models and the numbers of tokens.

What is counted, per matrix product of [a, b] and [b, c]: 2abc operations. The products are those with the
weights of the layers, those inside attention (a query with the keys it may see, and the weighted sum of as
many values), and those with the output head, which are counted at response positions only. Padding,
recomputation, products of masked pairs and anything that a step computes twice are not counted; neither are
normalisations, softmax over the vocabulary and other elementwise work. So the counts are a floor, not a
forecast. An implementation could undercut them only where it left out, in the last layer, positions that the
head does not read, and in the first, the backward of other positions than the prompt's.

Bytes are counted where reading them, not computing, sets the limit: in decoding each token step reads all
weights once, and each row's keys and values; an AdamW step reads weight, gradient and two moments of each
parameter in fp32 and writes back all but the gradient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from kd.config.fields import MethodName

ADAMW_BYTES = 7 * 4


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What a decoder's costs depend on."""

    width: int
    """Entries of a hidden state."""
    layer_weights: int
    """Entries of all matrices in the layers."""
    head_weights: int
    """Entries of the output head."""
    num_parameters: int
    """All of them; tied ones once."""
    num_layers: int
    attention_width: int
    """Query heads × width of a head."""
    cache_width: int
    """Key heads × width of a head: entries of a token's keys in a layer."""
    bytes_per_value: int

    @classmethod
    def of(cls, config: PretrainedConfig, *, dtype: torch.dtype) -> "ModelShape":
        """Shape of a causal language model of any family, read off the model without its weights."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        layer_weights = sum(
            parameter.numel()
            for module in model.modules()
            # Embeddings are looked up, not multiplied; the head is counted on its own.
            if module is not head and not isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if parameter.ndim == 2
        )
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            width=head.in_features,
            layer_weights=layer_weights,
            head_weights=head.weight.numel(),
            num_parameters=model.num_parameters(),
            num_layers=config.num_hidden_layers,
            attention_width=heads * width,
            cache_width=getattr(config, "num_key_value_heads", heads) * width,
            bytes_per_value=dtype.itemsize,
        )

    def forward(self, *, tokens: float, pairs: float) -> float:
        """Operations of the layers for `tokens`, whose queries see `pairs` keys together."""
        return 2 * self.layer_weights * tokens + 4 * self.num_layers * self.attention_width * pairs

    def backward_to_inputs(self, *, tokens: float, pairs: float) -> float:
        """Operations of the gradient to the inputs alone: the weights are frozen."""
        return 2 * self.layer_weights * tokens + 8 * self.num_layers * self.attention_width * pairs

    def backward(self, *, tokens: float, pairs: float) -> float:
        """Operations of the gradients to the weights and to the inputs of all layers."""
        return 4 * self.layer_weights * tokens + 8 * self.num_layers * self.attention_width * pairs

    def head(self, *, tokens: float) -> float:
        """Operations of one product with the output head: logits, or one of their two gradients."""
        return 2 * self.head_weights * tokens


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations and bytes that can overlap: the slower of the two takes the time."""

    operations: Mapping[str, float] = field(default_factory=dict)
    """By the kind of product: `<role> layer` or `<role> head`."""
    bytes: float = 0.0

    @property
    def num_operations(self) -> float:
        return sum(self.operations.values())


StepWork = dict[str, list[Work]]
"""What each part of a step does, one thing after the other."""


@dataclass(frozen=True, kw_only=True)
class ExampleBatch:
    """The sequences of one optimizer step on one rank; all responses count as equally long."""

    prompt_lengths: Sequence[float]
    response_tokens: float
    """Of each sequence."""
    soft_prompt_tokens: int
    num_ranks: int
    """Among which the optimizer's work is divided."""

    @property
    def num_response_tokens(self) -> float:
        return self.response_tokens * len(self.prompt_lengths)

    def plain(self) -> dict[str, float]:
        """Tokens and pairs of a pass over prompts and responses, whose last token predicts nothing."""
        return _tokens_and_pairs([length + self.response_tokens - 1 for length in self.prompt_lengths])

    def prompted(self) -> dict[str, float]:
        """The same with P in front."""
        more = self.soft_prompt_tokens + self.response_tokens - 1
        return _tokens_and_pairs([length + more for length in self.prompt_lengths])


def _tokens_and_pairs(lengths: Sequence[float]) -> dict[str, float]:
    return {"tokens": sum(lengths), "pairs": sum(length * (length + 1) / 2 for length in lengths)}


def count_step(method: MethodName, *, teacher: ModelShape, student: ModelShape, window: ExampleBatch) -> StepWork:
    """The work of one step of a method, by parts; without communication.

    `generation` samples y (sft and kd read it); `teacher` runs its layers without gradient; `prompt` is the
    prompted teacher forward and back to P, with the heads of the prompted teacher (logits and their gradient),
    the plain teacher and the student; `student` is the student forward and backward with its own head (logits
    and two gradients) and the teacher's.
    """
    student_head = student.head(tokens=window.num_response_tokens)
    training = {
        "student layer": student.forward(**window.plain()) + student.backward(**window.plain()),
        "student head": 3 * student_head,
    }
    optimizer = [Work(bytes=ADAMW_BYTES * student.num_parameters / window.num_ranks)]
    if method == "sft":
        return {"student": [Work(operations=training)], "optimizer": optimizer}
    plain_teacher = teacher.forward(**window.plain())
    teacher_head = teacher.head(tokens=window.num_response_tokens)
    work: StepWork = {
        "generation": [] if method == "kd" else generation_work(student, window),
        "teacher": [Work(operations={"teacher layer": plain_teacher})],
        "student": [Work(operations=training | {"teacher head": teacher_head})],
        "optimizer": optimizer,
    }
    if method == "promptkd":
        prompted = teacher.forward(**window.prompted())
        work["teacher"].append(Work(operations={"teacher layer": prompted}))
        products = {
            "teacher layer": prompted + teacher.backward_to_inputs(**window.prompted()),
            "teacher head": 3 * teacher_head,
            "student head": student_head,
        }
        work["prompt"] = [Work(operations=products)]
    return work


def generation_work(student: ModelShape, window: ExampleBatch) -> list[Work]:
    """Prompts in one pass, then one token of every row at a time, all rows of the rank together."""
    steps = max(0.0, window.response_tokens - 1)
    rows = len(window.prompt_lengths)
    head = student.head(tokens=rows)
    # The token of step s sees the prompt, s - 1 tokens before it and itself.
    pairs = sum(steps * length + steps * (steps + 1) / 2 for length in window.prompt_lengths)
    weights = (student.layer_weights + student.head_weights) * student.bytes_per_value
    cache = 2 * student.num_layers * student.cache_width * student.bytes_per_value * pairs
    prompts = student.forward(**_tokens_and_pairs(window.prompt_lengths))
    tokens = student.forward(tokens=rows * steps, pairs=pairs)
    return [
        Work(operations={"student layer": prompts, "student head": head}, bytes=weights),
        Work(operations={"student layer": tokens, "student head": steps * head}, bytes=steps * weights + cache),
    ]
