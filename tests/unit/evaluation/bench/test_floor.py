"""Seconds out of counted work and measured rates."""

import pytest

from evaluation.bench.floor import floor_of, moving_seconds
from evaluation.bench.operations import Work
from evaluation.bench.rates import Rates

RATES = Rates(products={"student layer": 100.0, "student head": 50.0}, memory_bytes=10.0, gathers={1: 3.0, 2: 4.0})


def test_the_slower_of_operations_and_bytes_takes_the_time() -> None:
    computing = Work(operations={"student layer": 200.0, "student head": 100.0}, bytes=5.0)
    reading = Work(operations={"student layer": 10.0}, bytes=40.0)
    floor = floor_of({"generation": [computing, reading], "optimizer": [Work(bytes=20.0)]}, RATES)
    # The fastest product is the rate of all operations, unless each has its own.
    assert floor.parts["generation"] == pytest.approx(300 / 100 + 40 / 10)
    assert floor.parts["optimizer"] == pytest.approx(2)
    assert floor.parts["prompt"] == 0
    assert floor.step == pytest.approx(3 + 4 + 2)
    assert floor.step_by_shape == pytest.approx(200 / 100 + 100 / 50 + 4 + 2)


def test_all_kinds_of_communication_are_moved_at_the_gathering_rate() -> None:
    assert moving_seconds({"gathered": 8, "reduced": 4}, RATES) == pytest.approx(3)
    alone = Rates(products=RATES.products, memory_bytes=1.0, gathers={})
    assert moving_seconds({"gathered": 0}, alone) == 0
