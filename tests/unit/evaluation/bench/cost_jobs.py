"""What the ranks do in the tests of communication."""

import torch
import torch.distributed as dist
from torch.profiler import record_function

from evaluation.bench.communication import CollectiveBytes, Waiting, profile_waiting
from kd.distributed import World


def count_collectives(world: World) -> tuple[dict[str, int], int]:
    """Bytes and calls of one collective operation of each kind, on 100 fp32 numbers of each rank."""
    shard, whole = torch.ones(100), torch.empty(100 * world.size)
    with CollectiveBytes() as collectives:
        dist.all_gather_into_tensor(whole, shard)
        dist.all_gather(list(whole.chunk(world.size)), shard)
        dist.reduce_scatter_tensor(shard, whole)
        dist.all_reduce(shard)
        dist.broadcast(shard, src=0)
        dist.barrier()
        shard + shard
    return collectives.num_bytes, collectives.num_calls


def profile_gathers(world: World) -> Waiting:
    """A gather that the thread waits for in `teacher`, and one that a product in `student` hides."""
    shard = torch.ones(2**20)
    whole = torch.empty(2**20 * world.size)
    matrix = torch.ones(1500, 1500)

    def step() -> None:
        with record_function("teacher"):
            dist.all_gather_into_tensor(whole, shard)
        with record_function("student"):
            pending = dist.all_gather_into_tensor(whole, shard[: 2**10].repeat(2**10), async_op=True)
            for _ in range(8):
                matrix @ matrix
            assert pending is not None
            pending.wait()

    step()
    return profile_waiting(step)
