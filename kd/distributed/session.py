"""Start and end of a run's ranks: the process group of torch, and DeepSpeed's."""

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from kd.distributed.launcher import RankInfo, find_rank, find_rendezvous, rank_from_environment
from kd.distributed.orphan import end_with_launcher
from kd.distributed.world import World, collective_timeout
from kd.errors import EXIT_CODE, LoneUserError, RunStopped, UserError

_joined: World | None = None


def on_gpu() -> bool:
    """Whether ranks use GPUs: where torch finds one, unless DS_ACCELERATOR=cpu is set."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def select_accelerator() -> None:
    """Call it before DeepSpeed is imported, which otherwise warns in every process on a CPU that it found no GPU."""
    if not on_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start_world() -> World:
    """Join the process group of this run (NCCL on GPUs, gloo on CPUs).

    Collective operations give up after DEEPSPEED_TIMEOUT minutes (default 30).

    Raises:
        UserError: the launcher does not set the ranks or their rendezvous, they cannot meet there, or some share a GPU.
    """
    select_accelerator()
    info = find_rank()
    address, port = find_rendezvous(info)
    device = _choose_gpu(info) if on_gpu() else torch.device("cpu")
    # torch and DeepSpeed read these under every launcher. DeepSpeed uses LOCAL_RANK as the index of the GPU.
    os.environ.update(
        RANK=str(info.rank),
        WORLD_SIZE=str(info.size),
        LOCAL_RANK=str(info.local_rank if device.index is None else device.index),
        MASTER_ADDR=address,
        MASTER_PORT=str(port),
    )
    if info.size > 1:
        end_with_launcher()
    timeout = collective_timeout()
    try:
        store, *_ = next(rendezvous("env://", info.rank, info.size, timeout=timeout))
        store.set_timeout(timeout)
        if device.type == "cuda":
            refuse_shared_gpus(store, info, uuid=str(torch.cuda.get_device_properties(device).uuid))
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("world", store),
            rank=info.rank,
            world_size=info.size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise UserError(
            f"the ranks cannot meet at {address}:{port} ({str(error).splitlines()[0]}); start all {info.size} ranks,"
            " and if another run uses that port, set MASTER_PORT (deepspeed --master_port 29501)"
        ) from None
    return World(rank=info.rank, size=info.size, local_rank=info.local_rank, device=device)


def _choose_gpu(info: RankInfo) -> torch.device:
    # With --gpus-per-task, Slurm shows each rank its own GPU only.
    num_gpus = torch.cuda.device_count()
    index = 0 if num_gpus == 1 else info.local_rank
    if index >= num_gpus:
        raise UserError(
            f"rank {info.rank} has local rank {index}, but sees {num_gpus} GPUs; start one rank for each GPU"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def refuse_shared_gpus(store: Store, info: RankInfo, *, uuid: str) -> None:
    """Refuse ranks that share a GPU, before NCCL starts, which may hang then; all ranks call it together.

    Raises:
        UserError: on all ranks, if any two have the same GPU, given by its `uuid`.
    """
    store.set(f"gpu/{info.rank}", uuid)
    if info.rank == 0:
        uuids = [store.get(f"gpu/{rank}") for rank in range(info.size)]
        shared = next((rank for rank in range(info.size) if uuids[rank] in uuids[:rank]), None)
        first = None if shared is None else uuids.index(uuids[shared])
        store.set("gpu/shared", "" if shared is None else f"ranks {first} and {shared} share a GPU")
    if found := store.get("gpu/shared").decode():
        raise UserError(
            f"{found}; start one rank for each GPU (deepspeed --num_gpus), or set DS_ACCELERATOR=cpu to use the CPU"
        )


def end_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the process group of this run at the first call, and stay in it until the process ends.

    DeepSpeed keeps references to the process group that it first met: a second one in the same process is an error.
    """
    global _joined
    atexit.unregister(end_world)
    atexit.unregister(_leave_alone)
    at_end: Callable[[], None] = _leave_alone
    try:
        if _joined is None or not dist.is_initialized():
            _joined = start_world()
        yield _joined
        at_end = end_world
    except RunStopped:
        at_end = end_world
        raise
    except UserError as error:
        if not isinstance(error, LoneUserError):
            at_end = end_world
        raise
    finally:
        atexit.register(at_end)


def _leave_alone(code: int = 1) -> None:
    """End the process at once, if other ranks may be in a collective operation.

    Leaving the process group, and the end of the interpreter, would wait for them until NCCL's timeout.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_with_user_error(error: UserError) -> int:
    """Print the error once per host, or on the rank of a `LoneUserError`; leave the group and return the exit code."""
    info = None
    with suppress(UserError):
        # Not from MPI, because that is collective, and this rank may be the only one with an error.
        info = rank_from_environment()
    if info is None or info.local_rank == 0 or isinstance(error, LoneUserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    if isinstance(error, LoneUserError):
        _leave_alone(EXIT_CODE)
    # Threads of gloo that still run at the interpreter's end abort the process with another exit code.
    end_world()
    return EXIT_CODE
