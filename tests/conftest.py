"""Shared fixtures: worker ranks, and checkpoints of tiny models."""

import os
from collections.abc import Callable, Iterator

import pytest

from tests.run_on_ranks import Ranks

# No test may ask a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Two ranks cannot share the GPU of a workstation.
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[[int], Ranks]]:
    """ranks(n): n worker processes, started once and kept for all tests."""
    pools: dict[int, Ranks] = {}

    def of_size(size: int) -> Ranks:
        if size not in pools or not pools[size].alive:
            pools[size] = Ranks(size)
        return pools[size]

    yield of_size
    for pool in pools.values():
        pool.stop()
