"""The arithmetic floor of a step: counted work over measured rates."""

from collections.abc import Mapping
from dataclasses import dataclass

from evaluation.bench.operations import StepWork, Work
from evaluation.bench.rates import Rates
from kd.zero.recorder import PHASES


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Seconds that a step cannot undercut, without communication."""

    parts: dict[str, float]
    """Of each part, with the fastest of all measured products as the rate of every operation."""
    step: float
    """Their sum."""
    step_by_shape: float
    """The same with each operation at the rate of a product of its own shape: what a library's products allow."""


def floor_of(work: StepWork, rates: Rates) -> Floor:
    """The floor of counted work."""
    parts: dict[str, float] = {part: sum(_seconds(item, rates) for item in work.get(part, [])) for part in PHASES}
    by_shape = sum(_seconds_by_shape(item, rates) for items in work.values() for item in items)
    return Floor(parts=parts, step=sum(parts.values()), step_by_shape=by_shape)


def _seconds(work: Work, rates: Rates) -> float:
    return max(work.num_operations / rates.operations, work.bytes / rates.memory_bytes)


def _seconds_by_shape(work: Work, rates: Rates) -> float:
    products = sum(operations / rates.products[kind] for kind, operations in work.operations.items())
    return max(products, work.bytes / rates.memory_bytes)


def moving_seconds(num_bytes: Mapping[str, int], rates: Rates) -> float:
    """Seconds that a rank's communication takes at the measured gathering rate."""
    if rates.gather_bytes is None:
        return 0.0
    return sum(num_bytes.values()) / rates.gather_bytes
