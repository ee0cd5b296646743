"""What the ranks do in the tests of communication."""

import torch
import torch.distributed as dist

from evaluation.bench.communication import CollectiveBytes
from kd.distributed import World


def count_collectives(world: World) -> dict[str, int]:
    """Bytes of one collective operation of each kind, on 100 fp32 numbers of each rank."""
    part, full = torch.ones(100), torch.empty(100 * world.size)
    with CollectiveBytes() as collectives:
        dist.all_gather_into_tensor(full, part)
        dist.all_gather(list(full.chunk(world.size)), part)
        dist.reduce_scatter_tensor(part, full)
        dist.all_reduce(part)
        dist.broadcast(part, src=0)
        dist.barrier()
        part + part
    return collectives.num_bytes
