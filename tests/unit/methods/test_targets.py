"""Which rows the student answers itself."""

import numpy as np

from kd.methods.targets import chance, is_answered_by_student
from kd.rollout.decode import row_streams


def test_a_fraction_of_the_rows_is_answered_by_the_student() -> None:
    chosen = [
        is_answered_by_student(row, seed=1, step=step, student_fraction=0.3) for row in range(100) for step in range(40)
    ]
    # 1200 expected; the standard deviation is 29.
    assert abs(sum(chosen) - 1200) < 5 * 29


def test_the_choice_is_made_anew_in_each_step_and_for_each_seed() -> None:
    def chosen(seed: int, step: int) -> list[bool]:
        return [is_answered_by_student(row, seed=seed, step=step, student_fraction=0.5) for row in range(64)]

    assert chosen(1, 1) == chosen(1, 1)
    assert chosen(1, 1) != chosen(1, 2)
    assert chosen(1, 1) != chosen(2, 1)


def test_the_ends_leave_no_choice() -> None:
    rows = range(200)
    assert all(is_answered_by_student(row, seed=1, step=1, student_fraction=1.0) for row in rows)
    assert not any(is_answered_by_student(row, seed=1, step=1, student_fraction=0.0) for row in rows)


def test_the_choice_tells_nothing_about_the_response() -> None:
    """Its numbers are others than those that the response's first token is drawn with."""
    numbers = np.array([chance(1, 5, row, stream=1) for row in range(2000)])
    first = row_streams(seed=1, step=5)(range(2000), 1).numpy()[:, 0]
    assert abs(np.corrcoef(numbers, first)[0, 1]) < 5 / np.sqrt(2000)
