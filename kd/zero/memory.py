"""What is free on the rank that has least: all ranks must choose alike."""

import psutil
import torch

from kd.distributed import World


def scarcest_bytes(world: World, *, hosts: list[list[int]]) -> int:
    """Free memory for this rank's part, on the rank that has least; all ranks call it together.

    The ranks of each host, in `hosts`, share its memory where there is no GPU.
    """
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        # What torch keeps for later is free too.
        free += torch.cuda.memory_reserved(world.device) - torch.cuda.memory_allocated(world.device)
    else:
        free = psutil.virtual_memory().available // next(len(ranks) for ranks in hosts if world.rank in ranks)
    return -int(world.max_across_ranks(torch.tensor(-free, device=world.device)).item())


def leaves_room(num_bytes: int, *, free_bytes: int) -> bool:
    """Whether as much of the free memory as something takes stays free for activations."""
    return 2 * num_bytes <= free_bytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the CPU or GPU ran out; cuBLAS, cuDNN and NCCL say so in their messages only."""
    messages = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "'out of memory'")
    is_message = isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
    return is_message or isinstance(error, torch.OutOfMemoryError | MemoryError)


def gib(num_bytes: int) -> str:
    """A size in GiB, for messages."""
    return f"{num_bytes / 2**30:.2f} GiB"
