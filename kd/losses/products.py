"""Products of float32 on a CPU, by the faster of the two libraries that torch carries."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

ProductsName = Literal["onednn", "torch"]
"""What multiplies float32 on a CPU: oneDNN where it can, or what torch takes by itself."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """inputs [..., K] · weightᵀ [K, m] + bias [m], not to be differentiated.

    torch multiplies float32 with MKL, which on processors of other makers runs at half of what they can do; oneDNN,
    which torch carries for convolutions, runs at full speed on all of them, and in float32 as well.
    """
    if is_for_onednn(inputs, weight):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return product
    return functional.linear(inputs, weight, bias)


def is_for_onednn(inputs: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies these."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.numel() > 0
        and bool(torch.backends.mkldnn.enabled)
        # It would choose another precision.
        and not torch.is_autocast_enabled("cpu")
        # An operator that torch's compiler uses too; builds without oneDNN lack it.
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def choose_products(name: ProductsName) -> None:
    """What multiplies from now on, in this process."""
    torch.backends.mkldnn.set_flags(name == "onednn")
