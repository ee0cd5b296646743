"""Bytes that collective operations move, and the time in which nothing else goes on."""

from collections.abc import Callable
from typing import Any

import pytest

from evaluation.bench.communication import Waiting, read_trace
from tests.run_on_ranks import Ranks
from tests.unit.evaluation.bench import cost_jobs as jobs


def event(name: str, start: float, end: float, *, category: str = "cpu_op", thread: int = 1) -> dict[str, Any]:
    return {"name": name, "cat": category, "ts": start * 1e6, "dur": (end - start) * 1e6, "tid": thread}


def gloo(start: float, end: float) -> list[dict[str, Any]]:
    """A gather on its thread, which copies in the end."""
    return [
        event("gloo:all_gather", start, end, category="user_annotation", thread=7),
        event("aten::copy_", end - 0.5, end, thread=7),
    ]


def span(name: str, start: float, end: float) -> dict[str, Any]:
    return event(name, start, end, category="user_annotation")


def test_exposed_communication_is_what_no_operation_hides() -> None:
    waiting = read_trace(
        [
            span("teacher", 0, 10),
            event("c10d::_allgather_base_", 0, 9),
            *gloo(1, 5),
            event("aten::mm", 2, 4),
            event("aten::add", 3, 4.5),
            span("student", 10, 20),
            # Two at once count once.
            *gloo(11, 13),
            *gloo(12, 14),
            # Between the parts.
            *gloo(21, 22),
        ]
    )
    assert waiting.total == pytest.approx(4 + 3 + 1)
    assert waiting.exposed["teacher"] == pytest.approx(1.5)
    assert waiting.exposed["student"] == pytest.approx(3)
    assert waiting.exposed["other"] == pytest.approx(1)
    assert waiting.exposed["generation"] == 0
    assert waiting.share("teacher") == pytest.approx(0.15)
    assert waiting.share("generation") == 0


def test_on_a_gpu_kernels_hide_communication_and_the_host_does_not() -> None:
    waiting = read_trace(
        [
            event("student", 0, 1, category="user_annotation"),
            event("student", 2, 8, category="gpu_user_annotation", thread=3),
            event("aten::mm", 0, 9),
            event("ncclDevKernel_AllGather_RING_LL", 3, 6, category="kernel", thread=4),
            event("gemm", 4, 5, category="kernel", thread=3),
        ]
    )
    assert waiting.total == pytest.approx(3)
    assert waiting.exposed["student"] == pytest.approx(2)
    assert waiting.parts["student"] == pytest.approx(6)


def test_bytes_are_counted_by_kind(ranks: Callable[[int], Ranks]) -> None:
    for num_bytes, num_calls in ranks(2).run(jobs.count_collectives):
        assert num_bytes == {"gathered": 2 * 800, "reduced": 800 + 2 * 400, "other": 400}
        assert num_calls == 5


def test_a_hidden_gather_is_exposed_less_than_an_awaited_one(ranks: Callable[[int], Ranks]) -> None:
    found: list[Waiting] = ranks(2).run(jobs.profile_gathers)
    for waiting in found:
        assert waiting.share("student") < waiting.share("teacher")
        assert 0 < waiting.exposed["teacher"] <= waiting.parts["teacher"]
        assert waiting.total > 0
