"""Faster layers compute the same, forward and backward, and change nothing of what is saved."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kd.engines.fast_layers import speed_up, use_products
from tests.onednn import calls_of_onednn

TOLERANCE = 2e-6


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("layer", [nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)])
@pytest.mark.parametrize("recomputes", [False, True])
def test_layer_and_its_gradients_in_float64(layer: nn.Module, recomputes: bool) -> None:
    torch.manual_seed(1)
    inputs = torch.randn(2, 7, 24, requires_grad=True)
    weights = torch.randn(2, 7, 40)
    tensors = [inputs, *layer.parameters()]

    def gradients(run: nn.Module, given: Tensor, factors: Tensor, wanted: list[Tensor]) -> list[Tensor]:
        outputs = checkpoint(run, given, use_reentrant=False) if recomputes else run(given)
        assert isinstance(outputs, Tensor)
        return list(torch.autograd.grad((outputs * factors).sum(), wanted))

    exact = type(layer)(40, 24) if isinstance(layer, Conv1D) else nn.Linear(24, 40, bias=len(tensors) == 3)
    exact.load_state_dict(layer.state_dict())
    exact = exact.double()
    exact_inputs = inputs.detach().double().requires_grad_()
    expected = gradients(exact, exact_inputs, weights.double(), [exact_inputs, *exact.parameters()])
    use_products(layer)
    found = gradients(layer, inputs, weights, tensors)
    assert len(found) == len(expected) == len(tensors)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < TOLERANCE


def test_frozen_layer_has_a_gradient_for_its_inputs_only() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    use_products(layer)
    inputs = torch.randn(3, 6, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, layer.weight.sum(0).expand(3, 6), atol=1e-6)
    assert layer.weight.grad is None


def test_a_copy_of_a_layer_has_its_own_weights() -> None:
    layer = nn.Linear(6, 4)
    use_products(layer)
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.weight.zero_()
    inputs = torch.randn(3, 6)
    assert torch.equal(copied(inputs), layer.bias.expand(3, 4))
    assert not torch.equal(layer(inputs), layer.bias.expand(3, 4))


def test_a_model_goes_when_nobody_holds_it() -> None:
    layer = nn.Linear(6, 4)
    use_products(layer)
    seen = weakref.ref(layer)
    gc.disable()
    try:
        del layer
        assert seen() is None
    finally:
        gc.enable()


def test_subclasses_of_layers_are_left_alone() -> None:
    class Doubling(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    layer = Doubling(4, 4)
    inputs = torch.randn(2, 4)
    expected = layer(inputs)
    use_products(layer)
    assert torch.equal(layer(inputs), expected)


MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=32, n_embd=32, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_a_model_computes_the_same(family: str) -> None:
    torch.manual_seed(2)
    model: PreTrainedModel = MODELS[family]().eval()
    ids = torch.randint(0, 97, (2, 11))

    def loss_and_gradients() -> list[Tensor]:
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.logsumexp(-1).sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected = loss_and_gradients()
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    speed_up(model)
    assert calls_of_onednn(loss_and_gradients) > 10
    found = loss_and_gradients()
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    # What is exported knows nothing of it.
    assert model.config.to_dict() == config
    assert saved.keys() == model.state_dict().keys()
