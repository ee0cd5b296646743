"""What is said of measured steps."""

from pathlib import Path

import pytest

from evaluation.bench.floor import Floor
from evaluation.bench.memory import PeakMemory
from evaluation.bench.presets import PRESETS
from evaluation.bench.rates import Rates
from evaluation.bench.report import CostReport, print_report
from evaluation.bench.summary import COLUMNS, Case, StepCost

GATHERED = 3_000_000_000


def step_cost(*, zero_stage: int, step_seconds: float, gathered: int) -> StepCost:
    return StepCost(
        case=Case(method="gkd", zero_stage=zero_stage),
        all_step_seconds=[step_seconds],
        step_seconds=step_seconds,
        seconds=dict.fromkeys(COLUMNS, 0.1),
        floor=Floor(parts={}, step=1.0, step_by_shape=1.0),
        waiting=None,
        # The sharded step reduces much more, which is none of the definition's.
        num_bytes={"gathered": gathered, "reduced": 10**12 * zero_stage, "other": 0},
        moving_seconds=10.0 * zero_stage,
        tokens_per_second=1.0,
        response_tokens=1.0,
        peak=PeakMemory(allocated=2**30, reserved=None),
    )


def report(*, gathered: int, gathers: dict[int, float]) -> CostReport:
    return CostReport(
        preset_name="tiny",
        preset=PRESETS["tiny"],
        machine={"num_ranks": 2, "gpus": [], "products": "torch"},
        rates=Rates(products={"student head": 1e9}, memory_bytes=1e9, gathers=gathers),
        costs=[
            step_cost(zero_stage=0, step_seconds=2.0, gathered=10**9),
            step_cost(zero_stage=3, step_seconds=5.0, gathered=gathered),
        ],
        peer=None,
    )


def test_sharding_is_compared_with_the_gathering_of_its_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(gathered=GATHERED, gathers={1: 10**9, 2: 2 * 10**9})
    # 3 GB - 1 GB at 2 GB/s.
    assert found.sharding() == [
        {"case": "gkd ZeRO-3", "extra_seconds": 3.0, "extra_gathering_seconds": 1.0, "ratio": 3.0}
    ]
    print_report(found, out=tmp_path)
    expected = "gkd ZeRO-3: 3.00 s more than unsharded; gathering its bytes takes 1.00 s at the measured rate: 3 ×\n"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gathered", "gathers"),
    [
        # As much as unsharded, less, and half a millisecond more.
        (10**9, {1: 2e9}),
        (0, {1: 2e9}),
        (10**9 + 10**6, {1: 2e9}),
        # A single rank.
        (GATHERED, {}),
    ],
)
def test_nothing_is_divided_by_next_to_no_gathering(gathered: int, gathers: dict[int, float]) -> None:
    [entry] = report(gathered=gathered, gathers=gathers).sharding()
    assert entry["ratio"] is None
    assert entry["extra_seconds"] == 3.0
