"""Shared fixtures: worker ranks, and checkpoints of tiny models."""

import os
from collections.abc import Callable, Iterator

import pytest

from kd.distributed import end_world, free_port
from tests.run_on_ranks import Ranks

# No test may ask a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Two ranks cannot share the GPU of a workstation.
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only rank of a run, which ends with the test."""
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (names | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    yield
    end_world()


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
