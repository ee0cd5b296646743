"""The estimator of exposure bias, by hand and on simulated chains."""

import numpy as np
import pytest

from evaluation.analysis.exposure_bias.curve import MIN_ROWS, ExposureBias, StepSums, exposure_bias
from evaluation.statistics import resample
from tests.reference.markov_chain import END_ID, WORDS, excess_accumulated_error, random_chain

NUM_STEPS = 6
P, Q = random_chain(seed=1, end=0.08), random_chain(seed=4, end=0.12)


def measured(
    student: list[list[list[float]]], teacher: list[list[list[float]]], *, num_steps: int, times: int = MIN_ROWS
) -> ExposureBias:
    """Divergences of each sample of each row, all of them `times` over."""
    sums = [
        StepSums.of([[np.array(values) for values in request] for request in times * requests], num_steps=num_steps)
        for requests in (student, teacher)
    ]
    return exposure_bias(*sums, draws=resample(len(sums[0].nats), num_resamples=200))


def test_means_over_the_samples_that_reach_a_step() -> None:
    # Step 1: (1 + 3 + 2) / 3 = 2; step 2: (5 + 3) / 2 = 4, without the sample that ended; E: 1, 3.
    bias = measured([[[1.0, 5.0], [3.0]], [[2.0, 3.0]]], [[[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0]]], num_steps=2)
    assert bias.R.value == pytest.approx((2.0, 6.0))
    assert bias.E.value == pytest.approx((1.0, 3.0))
    assert bias.ExAccErr.value == pytest.approx((100.0, 100.0))
    assert bias.num_student_samples == (3 * MIN_ROWS, 2 * MIN_ROWS)
    assert bias.num_teacher_samples == (3 * MIN_ROWS, 3 * MIN_ROWS)


def test_what_lies_beyond_the_last_step_is_left_out() -> None:
    bias = measured([[[1.0, 2.0, 9.0]]], [[[1.0, 1.0, 9.0]]], num_steps=2)
    assert bias.R.value == (1.0, 3.0)
    assert bias.ExAccErr.value == (0.0, 50.0)


def test_curves_end_before_a_step_that_few_requests_reach() -> None:
    bias = measured([[[1.0, 1.0]]], [[[1.0]]], num_steps=3)
    assert bias.R.value == bias.E.value == (1.0, None, None)
    few = measured([[[1.0]]], [[[1.0]]], num_steps=1, times=MIN_ROWS - 1)
    assert few.ExAccErr.value == few.ExAccErr.low == few.ExAccErr.high == (None,)


def test_no_error_at_all_has_no_relative_excess() -> None:
    bias = measured([[[0.0, 1.0]]], [[[0.0, 2.0]]], num_steps=2)
    assert bias.ExAccErr.value == (None, -50.0)
    assert bias.ExAccErr.low[0] is None


def simulate(sampler: np.ndarray, *, starts: np.ndarray, generator: np.random.Generator) -> list[list[np.ndarray]]:
    """Two samples of each row, as KL(P‖Q) at the states that the sampler passes."""
    per_state = (P * np.log(P / Q)).sum(axis=1)
    requests = []
    for start in starts:
        samples = []
        for _ in range(2):
            states = [start]
            while states[-1] != END_ID and len(states) <= NUM_STEPS:
                states.append(generator.choice(len(sampler), p=sampler[states[-1]]))
            samples.append(per_state[[state for state in states if state != END_ID][:NUM_STEPS]])
        requests.append(samples)
    return requests


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    truth = excess_accumulated_error(P, Q, num_steps=NUM_STEPS)[-1]
    generator = np.random.default_rng(1)
    covered, num_experiments = 0, 100
    for _ in range(num_experiments):
        starts = generator.integers(len(WORDS), size=60)
        sums = [
            StepSums.of(simulate(sampler, starts=starts, generator=generator), num_steps=NUM_STEPS)
            for sampler in (Q, P)
        ]
        curve = exposure_bias(*sums, draws=resample(60, num_resamples=300)).ExAccErr
        low, high = curve.low[-1], curve.high[-1]
        assert low is not None and high is not None
        covered += low <= truth <= high
    # 95 expected of 100; fewer than 88 or all of 100 has a probability below 1 % each.
    assert 88 <= covered < 100
