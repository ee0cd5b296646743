"""Products by oneDNN are torch's own up to rounding, and are what models multiply with."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kd.cpu import ProductsName, choose_products, linear, use_onednn
from kd.engines.causal_lm import speed_up

TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    enabled = bool(torch.backends.mkldnn.enabled)
    yield
    torch.backends.mkldnn.set_flags(enabled)


def calls_of_onednn(run: object) -> int:
    assert callable(run)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "mkldnn::_linear_pointwise")


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(5, 64), (1, 64), (2, 3, 64)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_product_in_float64(shape: tuple[int, ...], has_bias: bool) -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(shape), torch.randn(101, 64)
    bias = torch.randn(101) if has_bias else None
    expected = nn.functional.linear(inputs.double(), weight.double(), None if bias is None else bias.double())
    assert calls_of_onednn(lambda: linear(inputs, weight, bias)) == 1
    assert relative_error(linear(inputs, weight, bias), expected) < TOLERANCE
    # As backward has it: the weight is a transposed view.
    turned = weight.t().contiguous().t()
    assert relative_error(linear(inputs, turned, bias), expected) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_torch(dtype: torch.dtype) -> None:
    inputs, weight = torch.randn(3, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype)
    assert calls_of_onednn(lambda: linear(inputs, weight)) == 0
    assert torch.equal(linear(inputs, weight), nn.functional.linear(inputs, weight))


def test_no_rows() -> None:
    assert linear(torch.empty(0, 8), torch.randn(5, 8)).shape == (0, 5)


@pytest.mark.parametrize(("name", "count"), [("onednn", 1), ("torch", 0)])
def test_products_can_be_left_to_torch(name: ProductsName, count: int) -> None:
    choose_products(name)
    assert calls_of_onednn(lambda: linear(torch.randn(3, 8), torch.randn(5, 8))) == count


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
    use_onednn(layer)
    found = gradients(layer, inputs, weights, tensors)
    assert len(found) == len(expected) == len(tensors)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < TOLERANCE


def test_frozen_layer_has_a_gradient_for_its_inputs_only() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    use_onednn(layer)
    inputs = torch.randn(3, 6, requires_grad=True)
    layer(inputs).sum().backward()
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, layer.weight.sum(0).expand(3, 6), atol=1e-6)
    assert layer.weight.grad is None


def test_subclasses_of_layers_are_left_alone() -> None:
    class Doubling(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    layer = Doubling(4, 4)
    inputs = torch.randn(2, 4)
    expected = layer(inputs)
    use_onednn(layer)
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


MEMORY = """
import resource, sys, torch
from kd.cpu import keep_freed_memory, return_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
faults()
again = faults()
kept = resident()
return_freed_memory()
print(again, kept - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_stays_until_it_is_returned() -> None:
    results = {}
    for mode in ("keep", "give"):
        command = [sys.executable, "-c", MEMORY, mode]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[mode] = [int(word) for word in output.split()]
    (kept_faults, kept_bytes), (given_faults, given_bytes) = results["keep"], results["give"]
    # The second tensor of 256 MiB finds the first one's pages.
    assert kept_faults * 5 < given_faults
    assert kept_bytes > 200 * 2**20 > given_bytes
