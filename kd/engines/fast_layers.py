"""Layers of any model that compute the same by faster operations."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from kd.losses.products import is_for_onednn, linear


def speed_up(model: PreTrainedModel) -> None:
    """Give `model` faster layers, in place; its weights, their names and its configuration stay as they are."""
    for module in model.modules():
        for name, child in module.named_children():
            # Written out in eight operations, each of which reads, writes and keeps a tensor for backward.
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    if not torch.cuda.is_available():
        use_products(model)


class FastLinear(nn.Linear):
    """torch's layer, its products chosen by `kd.losses.products`."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not is_for_onednn(inputs, self.weight):
            return super().forward(inputs)
        outputs: Tensor = _Linear.apply(inputs, self.weight, self.bias, False)  # type: ignore[no-untyped-call]
        return outputs


class FastConv1D(Conv1D):
    """GPT-2's linear layer, which has its weight as [in, out], likewise."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not is_for_onednn(inputs, self.weight):
            return super().forward(inputs)  # type: ignore[no-any-return, no-untyped-call]
        outputs: Tensor = _Linear.apply(inputs, self.weight, self.bias, True)  # type: ignore[no-untyped-call]
        return outputs


_FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FastLinear, Conv1D: FastConv1D}


def use_products(model: nn.Module) -> None:
    """Let the linear layers of `model` multiply as `kd.losses.products` does, forward and backward."""
    for module in model.modules():
        # By their very types: subclasses compute something of their own. The class alone changes, and not the layer:
        # whoever holds it, its weights or its hooks sees no difference.
        if type(module) in _FAST:
            module.__class__ = _FAST[type(module)]


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
