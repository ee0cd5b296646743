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
    """work(*arguments) in a new process; arguments, result and exceptions are pickled."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        result: T = pool.submit(work, *arguments).result()
    return result


def in_fresh_ranks(work: Callable[..., T], *arguments: Any, world: World) -> T:
    """work(*arguments) in a new process of each rank, which can form process groups of their own.

    All ranks call it together.
    """
    # The ranks meet on the first rank's host, whose address the launcher has given.
    rendezvous = {"MASTER_PORT": str(world.from_main(free_port())), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    result: T = in_fresh_process(_work_as_rank, world, rendezvous, torch.get_num_threads(), work, arguments)
    return result


def _work_as_rank(
    world: World, rendezvous: dict[str, str], num_threads: int, work: Callable[..., T], arguments: tuple[Any, ...]
) -> T:
    device = world.local_rank if world.device.index is None else world.device.index
    # accelerate knows ranks by these variables only, whichever launcher has started them.
    os.environ.update(rendezvous, RANK=str(world.rank), LOCAL_RANK=str(device), WORLD_SIZE=str(world.size))
    torch.set_num_threads(num_threads)
    result = work(*arguments)
    end_world()
    return result
