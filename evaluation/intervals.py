"""Bootstrap intervals of means and ratios over requests (Efron's percentile method)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

CONFIDENCE = 0.95

Resamples = Int64[np.ndarray, "R N"]
"""How often each of N requests is drawn in each of R resamples."""


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


def resample(num_requests: int, *, num_resamples: int, seed: int = 0) -> Resamples:
    """Draw the requests with replacement, `num_resamples` times; the same draw for everything that is compared."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_requests, np.full(num_requests, 1 / num_requests), size=num_resamples)


def ratio(
    numerators: Float[np.ndarray, " N"], denominators: Float[np.ndarray, " N"], *, resamples: Resamples
) -> Estimate:
    """Σ numerators / Σ denominators over requests, such as nats over tokens."""
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = (resamples @ numerators) / (resamples @ denominators)
        value = numerators.sum() / denominators.sum()
    return estimate(value, drawn)


def estimate(value: float, drawn: Float[np.ndarray, " R"]) -> Estimate:
    """`value` with the interval of its resampled values; those that are not defined are left out."""
    low, high = interval(drawn[:, None])
    return Estimate(value=defined(value), low=defined(low[0]), high=defined(high[0]))


def interval(drawn: Float[np.ndarray, "R L"]) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """Lower and upper ends for each of L numbers; NaN where no resample defines one."""
    outside = (1 - CONFIDENCE) / 2
    values = np.where(np.isfinite(drawn), drawn, np.nan)
    ends = np.full((2, drawn.shape[1]), np.nan)
    known = ~np.isnan(values).all(axis=0)
    if known.any():
        ends[:, known] = np.nanquantile(values[:, known], [outside, 1 - outside], axis=0)
    return ends[0], ends[1]


def defined(value: float) -> float | None:
    """`value` for JSON, which has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None
