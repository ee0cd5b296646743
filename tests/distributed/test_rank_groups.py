"""Process groups of some ranks, and errors of one rank."""

from typing import Any

import pytest
import torch

from kd.distributed import World, exit_with_user_error, ranks_by_host
from kd.errors import LoneUserError, UserError


@pytest.mark.parametrize(
    ("locations", "hosts"),
    [
        ([("a", 0), ("a", 1), ("b", 0), ("b", 1)], [[0, 1], [2, 3]]),
        ([("a", 0), ("b", 0), ("a", 1), ("b", 1)], [[0, 2], [1, 3]]),
        ([("a", 0), ("a", 1), ("a", 2)], [[0, 1, 2]]),
        ([("localhost", 0), ("localhost", 1), ("localhost", 0), ("localhost", 1)], [[0, 1], [2, 3]]),
    ],
    ids=["block", "round robin", "one host", "hosts of one name"],
)
def test_ranks_are_told_apart_by_host(locations: list[tuple[str, int]], hosts: list[list[int]]) -> None:
    assert ranks_by_host(locations) == hosts


def work_in_groups(world: World) -> dict[str, Any]:
    assert world.hosts() == [[0, 1, 2, 3]]
    group = world.new_process_group([[0, 2], [1, 3]])
    own = torch.tensor([10.0 * world.rank, 1.0])
    return {
        "ranks": group.ranks,
        "group_rank": group.group_rank,
        "sum": group.sum_across_ranks(own.clone()).tolist(),
        "first": group.from_first(own.clone()).tolist(),
        "objects": group.gather_objects(f"rank {world.rank}"),
    }


def test_a_process_group_reduces_broadcasts_and_gathers_among_its_ranks(ranks: Any) -> None:
    even = {"ranks": (0, 2), "sum": [20.0, 2.0], "first": [0.0, 1.0], "objects": ["rank 0", "rank 2"]}
    odd = {"ranks": (1, 3), "sum": [40.0, 2.0], "first": [10.0, 1.0], "objects": ["rank 1", "rank 3"]}
    expected = [{**group, "group_rank": group_rank} for group_rank in (0, 1) for group in (even, odd)]
    assert ranks(4).run(work_in_groups) == expected


def test_an_error_of_one_rank_alone_is_printed_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert exit_with_user_error(UserError("known to all")) == 2
    assert exit_with_user_error(LoneUserError("known here")) == 2
    assert capsys.readouterr().err == "error: known here\n"
