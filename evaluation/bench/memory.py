"""Peak memory of a rank since a moment of one's choice."""

import contextlib
import gc
import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from kd.distributed import World


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Bytes of the rank that took the most."""

    allocated: int
    """By tensors on a GPU; on a CPU resident in the whole process, interpreter and libraries included."""
    reserved: int | None
    """By torch's allocator on a GPU (the paper's `cached`); None on a CPU, which has no such pool."""


def forget_peak(world: World) -> None:
    """Drop garbage and start to look for the peak anew."""
    gc.collect()
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(world.device)
    else:
        forget_resident_peak()


def forget_resident_peak() -> None:
    """Lower the process's high-water mark to what is resident now, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident_peak() -> int:
    """Largest resident size of this process since then [bytes].

    Read from /proc where there is one: getrusage remembers the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def read_peak(world: World) -> PeakMemory:
    """The peak since `forget_peak`; all ranks call it together."""
    if world.device.type == "cuda":
        local = [torch.cuda.max_memory_allocated(world.device), torch.cuda.max_memory_reserved(world.device)]
    else:
        local = [resident_peak()]
    largest = world.max_across_ranks(torch.tensor(local, dtype=torch.int64, device=world.device)).tolist()
    return PeakMemory(allocated=largest[0], reserved=largest[1] if len(largest) > 1 else None)
