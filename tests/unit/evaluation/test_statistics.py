"""Standard errors, and bootstrap intervals of ratios over rows."""

import numpy as np
import pytest

from evaluation.statistics import Estimate, interval, ratio, resample, standard_error


def test_a_standard_error_needs_two_values() -> None:
    # Standard deviation of 20 and 26 is sqrt(18); divided by sqrt(2) it is 3.
    assert standard_error(np.array([20.0, 26.0])) == pytest.approx(3.0)
    assert standard_error(np.array([20.0])) is None


def test_a_resample_draws_as_many_rows_as_there_are() -> None:
    draws = resample(7, num_resamples=500)
    assert draws.shape == (500, 7)
    assert set(draws.sum(axis=1)) == {7}
    assert draws.std() == pytest.approx(np.sqrt(6 / 7), rel=0.05)
    assert np.array_equal(draws, resample(7, num_resamples=500))
    assert not np.array_equal(draws, resample(7, num_resamples=500, seed=1))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, size=400)
    found = ratio(values, np.ones(400), draws=resample(400, num_resamples=4000))
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_a_ratio_weighs_rows_by_their_denominators() -> None:
    found = ratio(np.array([1.0, 90.0]), np.array([1.0, 30.0]), draws=resample(2, num_resamples=100))
    # Both, or one of them twice.
    assert (found.value, found.low, found.high) == (pytest.approx(91 / 31), 1.0, 3.0)


def test_what_is_not_defined_has_no_value() -> None:
    nothing = Estimate(value=None, low=None, high=None)
    assert ratio(np.zeros(3), np.zeros(3), draws=resample(3, num_resamples=10)) == nothing
    assert str(nothing) == "–"
    low, high = interval(np.array([[np.nan, 1.0], [np.nan, 2.0], [np.nan, np.inf]]))
    assert np.isnan(low[0]) and np.isnan(high[0])
    assert 1.0 <= low[1] <= high[1] <= 2.0
