"""Measurements in fresh processes.

DeepSpeed's ZeRO-3 engines outlive their last use, and the peak memory of a process never falls: in one process,
every measurement would include those before it.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from kd.distributed import World, end_world, free_port

T = TypeVar("T")


def in_fresh_process(work: Callable[..., T], *arguments: Any) -> T:
    """work(*arguments) in a new process; arguments, result and whatever it raises are pickled."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def in_fresh_ranks(work: Callable[..., T], *arguments: Any, world: World) -> T:
    """work(*arguments) in a new process of each rank, which can form a process group of their own.

    All ranks call it together.
    """
    # The ranks meet on the first rank's host, whose address the launcher has given.
    port = world.from_main(free_port())
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    local_rank = world.local_rank if world.device.index is None else world.device.index
    variables = dict(
        RANK=str(world.rank),
        LOCAL_RANK=str(local_rank),
        WORLD_SIZE=str(world.size),
        MASTER_PORT=str(port),
        # torchrun's own store serves the ranks that it started, not these.
        TORCHELASTIC_USE_AGENT_STORE="False",
    )
    return in_fresh_process(_work_as_rank, variables, torch.get_num_threads(), work, arguments)


def _work_as_rank(variables: dict[str, str], num_threads: int, work: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    os.environ.update(variables)
    torch.set_num_threads(num_threads)
    result = work(*arguments)
    end_world()
    return result
