"""Means over training seeds, with their standard errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Values of the training seeds, in their order, and what they come to."""

    per_seed: tuple[float, ...]
    mean: float
    standard_error: float | None
    """Over the training seeds; None with one."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise at least one value."""
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return cls(per_seed=tuple(values), mean=fmean(values), standard_error=error)

    def text(self, *, sign: str = "", digits: int = 2) -> str:
        """Mean ± standard error; `sign` "+" shows that of a positive mean."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.standard_error is None else f"{mean} ± {self.standard_error:.{digits}f}"
