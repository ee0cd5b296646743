"""Counted operations against those that torch counts while a model runs."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from evaluation.bench.operations import ExampleBatch, ModelShape, count_step, generation_work
from evaluation.bench.presets import METHODS
from tests.tiny_models import FAMILIES, tiny_config

ROWS, LENGTH, VOCABULARY = 3, 10, 48
TOKENS = ROWS * LENGTH
# torch counts the masked pairs of a query with later keys too.
ALL_PAIRS = ROWS * LENGTH * LENGTH


def small_model(family: str) -> PreTrainedModel:
    config = tiny_config(family, vocab_size=VOCABULARY, width=32, layers=2, attn_implementation="eager")
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def shape_of(model: PreTrainedModel) -> ModelShape:
    return ModelShape.of(model.config, dtype=torch.float32)


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_head(family: str) -> None:
    model = small_model(family)
    shape = shape_of(model)
    with torch.no_grad():
        seen = counted(lambda: model(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False))
    assert seen == shape.forward(tokens=TOKENS, pairs=ALL_PAIRS) + shape.head(tokens=TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_backward_to_inputs_of_a_frozen_model(family: str) -> None:
    model = small_model(family).requires_grad_(False)
    inputs = torch.randn(ROWS, LENGTH, 32, requires_grad=True)
    states = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    seen = counted(lambda: states.sum().backward())
    assert seen == shape_of(model).backward_to_inputs(tokens=TOKENS, pairs=ALL_PAIRS)


@pytest.mark.parametrize("family", FAMILIES)
def test_backward_to_weights(family: str) -> None:
    model = small_model(family)
    states = model.base_model(input_ids=torch.zeros(ROWS, LENGTH, dtype=torch.long), use_cache=False).last_hidden_state
    seen = counted(lambda: states.sum().backward())
    assert seen == shape_of(model).backward(tokens=TOKENS, pairs=ALL_PAIRS)


def test_decoding_with_a_cache() -> None:
    model = small_model("gpt2")
    cache, steps = DynamicCache(), 5
    window = ExampleBatch(prompt_lengths=[LENGTH] * ROWS, response_tokens=steps + 1, soft_prompt_tokens=0, num_ranks=1)

    @torch.no_grad()
    def decode() -> None:
        tokens = torch.zeros(ROWS, LENGTH, dtype=torch.long)
        for _ in range(steps + 1):
            model(input_ids=tokens, past_key_values=cache, logits_to_keep=1)
            tokens = torch.zeros(ROWS, 1, dtype=torch.long)

    seen = counted(decode)
    shape = shape_of(model)
    # Of the prompts, the later keys are masked.
    masked = 4 * shape.num_layers * shape.attention_width * ROWS * LENGTH * (LENGTH - 1) / 2
    assert seen == sum(work.num_operations for work in generation_work(shape, window)) + masked


def test_a_shape_counts_every_parameter_once() -> None:
    tied, untied = (shape_of(small_model(family)) for family in ("gpt2", "llama"))
    for shape, family in ((tied, "gpt2"), (untied, "llama")):
        assert shape.num_parameters == sum(parameter.numel() for parameter in small_model(family).parameters())
        assert shape.head_weights == VOCABULARY * 32


def test_each_method_does_what_it_should() -> None:
    shape = shape_of(small_model("gpt2"))
    window = ExampleBatch(prompt_lengths=[4, 6], response_tokens=5, soft_prompt_tokens=3, num_ranks=2)
    sft, kd, gkd, promptkd = (count_step(method, teacher=shape, student=shape, window=window) for method in METHODS)
    head = shape.head(tokens=10)
    assert set(sft) == {"student", "optimizer"}
    assert kd | {"generation": gkd["generation"]} == gkd
    assert kd["generation"] == []
    assert set(gkd) == {"generation", "teacher", "student", "optimizer"}
    assert set(promptkd) == {"generation", "teacher", "prompt", "student", "optimizer"}
    # Inputs of 8 and 10 tokens: the last response token predicts nothing.
    plain = shape.forward(tokens=18, pairs=8 * 9 / 2 + 10 * 11 / 2)
    assert [work.operations for work in gkd["teacher"]] == [{"teacher layer": plain}]
    assert sft["student"][0].operations == {"student layer": 3 * plain, "student head": 3 * head}
    assert gkd["student"][0].operations == sft["student"][0].operations | {"teacher head": head}
    prompted = shape.forward(tokens=24, pairs=11 * 12 / 2 + 13 * 14 / 2)
    assert [work.num_operations for work in promptkd["teacher"]] == [plain, prompted]
    back = shape.backward_to_inputs(tokens=24, pairs=11 * 12 / 2 + 13 * 14 / 2)
    # Logits of prompted and plain teacher, and the gradient of the first; the student's logits.
    products = {"teacher layer": prompted + back, "teacher head": 3 * head, "student head": head}
    assert promptkd["prompt"][0].operations == products
    assert sft["optimizer"][0].bytes == 28 * shape.num_parameters / 2
