"""What makes a CPU fast where torch's defaults do not: products by oneDNN, and memory that stays with the process."""

import ctypes
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

ProductsName = Literal["onednn", "torch"]
"""What multiplies float32 on a CPU: oneDNN where it can be, or torch as it does by itself."""

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3)."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs [..., K] · weightᵀ [K, m] + bias [m], not to be differentiated: float32 on a CPU by oneDNN.

    torch multiplies float32 with MKL, which on processors of other makers runs at half of what they can do; oneDNN,
    which torch carries for convolutions, runs at full speed on all of them, and in float32 as well.
    """
    if _is_for_onednn(inputs, weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return product
    return functional.linear(inputs, weight, bias)


def choose_products(name: ProductsName) -> None:
    """What multiplies from now on, in this process."""
    torch.backends.mkldnn.set_flags(name == "onednn")


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of `model` multiply as `linear` does, forward and backward."""
    for module in model.modules():
        # Not their subclasses, which compute something of their own. GPT-2's layer has its weight as [in, out].
        if type(module) in (nn.Linear, Conv1D):
            module.forward = partial(_forward, module, is_transposed=type(module) is Conv1D)


def _forward(layer: nn.Module, inputs: Tensor, *, is_transposed: bool) -> Tensor:
    weight: Any = layer.weight
    if not _is_for_onednn(inputs, weight):
        return type(layer).forward(layer, inputs)  # type: ignore[no-any-return]
    outputs: Tensor = _Linear.apply(inputs, weight, layer.bias, is_transposed)  # type: ignore[no-untyped-call]
    return outputs


class _Linear(torch.autograd.Function):
    """Takes the parameter itself: under ZeRO-3 a view of it would keep it whole until backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, is_transposed: bool) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.is_transposed = is_transposed
        return linear(inputs, weight.t() if is_transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        gradient = grad_outputs[0]
        rows = gradient.flatten(0, -2)
        of_inputs = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = linear(gradient, weight if ctx.is_transposed else weight.t())
        if ctx.needs_input_grad[1]:
            sides = (inputs.flatten(0, -2), rows)
            left, right = sides if ctx.is_transposed else sides[::-1]
            of_weight = left.t() @ right
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_inputs, of_weight, of_bias, None


def _is_for_onednn(inputs: Tensor, weight: Tensor) -> bool:
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        # An operator that torch's compiler uses too; builds without oneDNN lack it.
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def keep_freed_memory() -> None:
    """Let freed memory stay with this process for its next tensors, as torch does on a GPU by itself.

    glibc gives large tensors back to the system and takes them anew, page by page and filled with zeros. Another C
    library keeps its own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        # What communication's threads free is for the others too.
        mallopt(_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give back what is kept and not in use, so that the system's numbers tell what is."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
