"""Standard errors and bootstrap intervals over rows (Efron's percentile method)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

CONFIDENCE = 0.95

Draws = Int64[np.ndarray, "R N"]
"""How often each of N rows is drawn in each of R resamples."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "–"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def standard_error(values: Float[np.ndarray, " N"]) -> float | None:
    """Standard error of the mean of `values`; None for a single one."""
    return float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None


def resample(num_rows: int, *, num_resamples: int, seed: int = 0) -> Draws:
    """Draw rows with replacement, as many as there are, `num_resamples` times."""
    drawn = np.random.default_rng(seed).integers(num_rows, size=(num_resamples, num_rows))
    # Counted for all resamples at once: much faster than multinomial().
    drawn += num_rows * np.arange(num_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


def ratio(numerators: Float[np.ndarray, " N"], denominators: Float[np.ndarray, " N"], *, draws: Draws) -> Estimate:
    """Σ numerators / Σ denominators over rows, such as nats per token, with its interval."""
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = (draws @ numerators) / (draws @ denominators)
        value = numerators.sum() / denominators.sum()
    low, high = interval(resampled[:, None])
    return Estimate(value=finite(value), low=finite(low[0]), high=finite(high[0]))


def interval(resampled: Float[np.ndarray, "R L"]) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """Lower and upper ends of the intervals of L numbers; NaN for a number that no resample defines."""
    outside = (1 - CONFIDENCE) / 2
    values = np.where(np.isfinite(resampled), resampled, np.nan)
    ends = np.full((2, resampled.shape[1]), np.nan)
    known = ~np.isnan(values).all(axis=0)
    if known.any():
        ends[:, known] = np.nanquantile(values[:, known], [outside, 1 - outside], axis=0)
    return ends[0], ends[1]


def finite(value: float) -> float | None:
    """`value` for JSON, which has neither NaN nor infinity: None instead."""
    return float(value) if np.isfinite(value) else None
