"""Products by oneDNN are torch's own up to rounding."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from kd.losses.products import ProductsName, choose_products, linear
from tests.onednn import calls_of_onednn

TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    enabled = bool(torch.backends.mkldnn.enabled)
    yield
    torch.backends.mkldnn.set_flags(enabled)


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


def test_autocast_is_left_to_torch() -> None:
    inputs, weight = torch.randn(3, 8), torch.randn(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(inputs, weight).dtype == torch.bfloat16


def test_no_rows() -> None:
    assert linear(torch.empty(0, 8), torch.randn(5, 8)).shape == (0, 5)


@pytest.mark.parametrize(("name", "count"), [("onednn", 1), ("torch", 0)])
def test_products_can_be_left_to_torch(name: ProductsName, count: int) -> None:
    choose_products(name)
    assert calls_of_onednn(lambda: linear(torch.randn(3, 8), torch.randn(5, 8))) == count
