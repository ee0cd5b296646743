"""What this machine can do: products, memory and gathers per second, measured on all ranks at once."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

from evaluation.bench.operations import ModelShape
from kd.distributed import World
from kd.losses.products import linear

BUFFER_BYTES = 2**28
"""Large against every cache."""
GATHER_BYTES = (2**22, 2**24, 2**26)
"""Sizes of a gathered tensor; ZeRO-3 gathers a layer or a few at a time."""
_SECONDS = 0.2
_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Product:
    """[rows, inner] times [inner, columns]."""

    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.inner * self.columns


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Means over the ranks, while all of them work."""

    products: dict[str, float]
    """Operations per second and rank by kind, as in `Work.operations`."""
    memory_bytes: float
    """Bytes per second and rank, read or written: the faster of summing up a large buffer and copying one."""
    gathers: dict[int, float]
    """Bytes of a gathered tensor per second and rank, by its size in bytes; empty for a single rank."""

    @property
    def operations(self) -> float:
        """The fastest product sets the rate: a floor must not be raised by a slow one."""
        return max(self.products.values())

    @property
    def gather_bytes(self) -> float | None:
        """The fastest gathering, likewise."""
        return max(self.gathers.values(), default=None)


def measure_rates(shapes: Mapping[str, ModelShape], *, rows: int, dtype: torch.dtype, world: World) -> Rates:
    """Measure with products like those of the models, `rows` tokens at a time; all ranks together."""
    products = {}
    for name, shape in shapes.items():
        products[f"{name} layer"] = Product(rows=rows, inner=shape.width, columns=4 * shape.width)
        products[f"{name} head"] = Product(rows=rows, inner=shape.width, columns=shape.head_weights // shape.width)
    rates = {name: _product_rate(product, dtype=dtype, world=world) for name, product in products.items()}
    return Rates(products=rates, memory_bytes=_memory_rate(world), gathers=_gather_rates(dtype, world=world))


def _product_rate(product: Product, *, dtype: torch.dtype, world: World) -> float:
    left = torch.randn(product.rows, product.inner, dtype=dtype, device=world.device)
    # As a linear layer has it: [out, in], transposed by the product.
    right = torch.randn(product.columns, product.inner, dtype=dtype, device=world.device)
    return product.operations / _seconds(lambda: linear(left, right), world=world)


def _memory_rate(world: World) -> float:
    source = torch.ones(BUFFER_BYTES // 4, device=world.device)
    target = torch.empty_like(source)
    reading = BUFFER_BYTES / _seconds(source.sum, world=world)
    copying = 2 * BUFFER_BYTES / _seconds(lambda: target.copy_(source), world=world)
    return max(reading, copying)


def _gather_rates(dtype: torch.dtype, *, world: World) -> dict[int, float]:
    rates: dict[int, float] = {}
    if world.size == 1:
        return rates
    for num_bytes in GATHER_BYTES:
        shard = torch.ones(num_bytes // dtype.itemsize // world.size, dtype=dtype, device=world.device)
        whole = torch.empty(shard.numel() * world.size, dtype=dtype, device=world.device)
        seconds = _seconds(partial(dist.all_gather_into_tensor, whole, shard), world=world)
        rates[num_bytes] = whole.nbytes / seconds
    return rates


def _seconds(work: Callable[[], object], *, world: World) -> float:
    """Seconds of one call, the mean over the ranks of each rank's best round; all ranks start together."""
    once = _round_seconds(work, 1, world=world)
    # Gathers wait for each other: every rank must make as many.
    slowest = world.max_across_ranks(torch.tensor(once, dtype=torch.float64, device=world.device))
    repeats = max(1, int(_SECONDS / max(float(slowest.item()), 1e-9)))
    best = min(_round_seconds(work, repeats, world=world) for _ in range(_ROUNDS))
    total = world.sum_across_ranks(torch.tensor(best, dtype=torch.float64, device=world.device))
    return float(total.item()) / world.size


def _round_seconds(work: Callable[[], object], repeats: int, *, world: World) -> float:
    world.barrier()
    synchronize(world)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(world)
    return (time.perf_counter() - start) / repeats


def synchronize(world: World) -> None:
    """Wait until a GPU has done what it was told."""
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
