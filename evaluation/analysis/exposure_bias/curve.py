"""Excess accumulated error from divergences at every step (arXiv 2402.12842, Eq. 5-7; Arora et al. 2022).

N rows, L generation steps, R resamples of the rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from evaluation.statistics import Draws, Estimate, finite, interval

MIN_ROWS = 10
"""Curves end before a step that the samples of fewer rows reach: their mean would be noise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepSums:
    """KL(p‖q) at the steps of one model's samples, summed over the samples of each row."""

    nats: Float[np.ndarray, "N L"]
    counts: Int64[np.ndarray, "N L"]
    """Samples that have not ended before the step; the step that draws the end token counts."""

    @classmethod
    def of(cls, divergences: Sequence[Sequence[Float[np.ndarray, " T"]]], *, num_steps: int) -> "StepSums":
        """Sum `divergences` of each row's samples, each as long as its sample, over the first `num_steps`."""
        shape = (len(divergences), num_steps)
        nats, counts = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        for row, samples in enumerate(divergences):
            for values in samples:
                reached = min(len(values), num_steps)
                nats[row, :reached] += values[:reached]
                counts[row, :reached] += 1
        return cls(nats=nats, counts=counts)

    def accumulated(self, draws: Int64[np.ndarray, "R N"]) -> Float[np.ndarray, "R L"]:
        """Σ over t ≤ l of the mean at step t over the samples that reach it; NaN from where none does."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.cumsum((draws @ self.nats) / (draws @ self.counts), axis=1)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A number for each step l = 1 … L with its 95 % interval; None where it is not defined."""

    value: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]

    def at(self, num_steps: int) -> Estimate:
        """The number at l = `num_steps`."""
        index = num_steps - 1
        return Estimate(value=self.value[index], low=self.low[index], high=self.high[index])


@dataclass(frozen=True, kw_only=True)
class ExposureBias:
    """R(l) and E(l) in nats, and ExAccErr(l) in percent."""

    num_student_samples: tuple[int, ...]
    """Samples of the student that reach each step."""
    num_teacher_samples: tuple[int, ...]
    R: Series
    E: Series
    ExAccErr: Series


def exposure_bias(student: StepSums, teacher: StepSums, *, draws: Draws) -> ExposureBias:
    """R from the student's samples, E from the teacher's; a resample draws a row's samples of both together."""
    all_rows = np.ones((1, len(student.nats)), dtype=np.int64)
    # The first row is the estimate itself.
    draws = np.concatenate([all_rows, draws])
    risk, least = student.accumulated(draws), teacher.accumulated(draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = 100 * (risk - least) / least
    reached = np.minimum((student.counts > 0).sum(axis=0), (teacher.counts > 0).sum(axis=0))
    for values in (risk, least, excess):
        values[:, reached < MIN_ROWS] = np.nan
    return ExposureBias(
        num_student_samples=tuple(student.counts.sum(axis=0).tolist()),
        num_teacher_samples=tuple(teacher.counts.sum(axis=0).tolist()),
        R=_series(risk),
        E=_series(least),
        ExAccErr=_series(excess),
    )


def _series(values: Float[np.ndarray, "1+R L"]) -> Series:
    ends = interval(values[1:])
    # Beyond the end of the curve, and where E is 0, there is no estimate to put an interval around.
    low, high = (np.where(np.isfinite(values[0]), end, np.nan) for end in ends)
    rows = [tuple(finite(number) for number in numbers) for numbers in (values[0], low, high)]
    return Series(value=rows[0], low=rows[1], high=rows[2])
