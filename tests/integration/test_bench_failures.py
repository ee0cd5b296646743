"""What is left of a measurement of evaluation.bench that fails on its way."""

import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from tests.integration import cost_jobs as jobs

T = TypeVar("T")

pytest.importorskip("matplotlib")


def in_fresh_process(job: Callable[[Path], T], out: Path) -> T:
    """The commands change their process: it is the rank of a run then, and DeepSpeed has started."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job, out).result()


def test_a_later_failure_loses_no_case(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert in_fresh_process(jobs.measure_without_teacher, out) == 2
    assert "models/teacher" in capfd.readouterr().err
    found = json.loads((out / "cost.json").read_text(encoding="utf-8"))
    assert [cost["name"] for cost in found["costs"]] == ["sft ZeRO-0"]
    assert not (out / "models").exists()


def test_steps_are_drawn_and_printed_where_the_peer_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert in_fresh_process(jobs.measure_with_failing_peer, out) == 2
    shown = capfd.readouterr()
    assert "error: the peer failed" in shown.err
    assert "step / floor" in shown.out
    assert {path.name for path in out.iterdir()} == {"cost.json", "cost.png", "cost.svg", "runs"}


def test_a_later_failure_loses_no_way_to_decode(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(MemoryError):
        in_fresh_process(jobs.decode_until_failure, out)
    found = json.loads((out / "decoding.json").read_text(encoding="utf-8"))
    assert [way["name"] for way in found["ways"]] == ["this project"]
    assert not (out / "models").exists()
