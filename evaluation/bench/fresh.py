"""One measurement after the other, each in processes that know nothing of those before it.

DeepSpeed's ZeRO-3 engines outlive their last use (its hooks and torch's graph hold each other), and the
high-water mark of a process's memory does not fall: in one process, every case would carry those before it.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from kd.distributed import World, end_world, free_port, start_world

T = TypeVar("T")


def in_fresh_ranks(work: Callable[..., T], *, world: World, **arguments: Any) -> T:
    """work(world=…, **arguments) in a new process of each rank, which form a process group of their own.

    All ranks call it together; arguments and result must be picklable. What the work raises is raised here.
    """
    # The first rank's host is where the ranks meet.
    port = world.from_main(free_port())
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_join, port, torch.get_num_threads(), work, arguments).result()


def _join(port: int, num_threads: int, work: Callable[..., T], arguments: dict[str, Any]) -> T:
    # torchrun's own store serves the ranks that it started, not these.
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="False")
    torch.set_num_threads(num_threads)
    result = work(world=start_world(), **arguments)
    end_world()
    return result
