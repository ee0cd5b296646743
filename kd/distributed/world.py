"""Ranks: who they are, how they count together, how they end together.

The only module that reads RANK, SLURM_* or OMPI_* from the environment.
"""

import os
import random
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from kd.errors import EXIT_CODE, LoneUserError, UserError

T = TypeVar("T")

DEFAULT_PORT = 29500
"""Slurm's jobs meet at this one and above."""
_PORTS = range(20000, DEFAULT_PORT)


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run, seen from one of them."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_across_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` (any shape, same on all ranks) over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def max_across_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Largest of `values` over the ranks, elementwise and in place."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def gather_counts(self, local: Sequence[int]) -> list[list[int]]:
        """Some host integers of every rank, in the order of the ranks; the one host sync of a step."""
        own = torch.tensor(local, dtype=torch.int64, device=self.device)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        if self.size > 1:
            dist.all_gather(gathered, own)
        else:
            gathered = [own]
        counts: list[list[int]] = torch.stack(gathered).tolist()
        return counts

    def gather_objects(self, local: T) -> list[T]:
        """One picklable object of every rank, in the order of the ranks."""
        gathered: list[T] = [local] * self.size
        if self.size > 1:
            dist.all_gather_object(gathered, local)
        return gathered

    def from_main(self, value: T) -> T:
        """The main rank's value, on all ranks."""
        return self.gather_objects(value)[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def hosts(self) -> list[list[int]]:
        """The ranks of each host, in the order of the ranks; all ranks call it together."""
        return ranks_by_host(self.gather_objects((socket.gethostname(), self.local_rank)))

    def join_group(self, groups: Sequence[Sequence[int]]) -> "RankGroup":
        """The one of `groups` that this rank is in; together they hold every rank once. All ranks call it together."""
        channel, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in groups], timeout=_timeout())
        ranks = next(tuple(ranks) for ranks in groups if self.rank in ranks)
        return RankGroup(ranks=ranks, place=ranks.index(self.rank), channel=channel)

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Run local work after which all ranks go on, or all raise the first rank's UserError.

        Without this, a rank that alone meets a bad file leaves the others waiting for it in the
        next collective operation.
        """
        message = None
        try:
            yield
        except UserError as error:
            message = str(error)
        first = next((found for found in self.gather_objects(message) if found is not None), None)
        if first is not None:
            raise UserError(first)


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    """Ranks that work on one thing together, seen from one of them."""

    ranks: tuple[int, ...]
    """Their numbers in the world."""
    place: int
    """Which of them this rank is."""
    channel: dist.ProcessGroup

    @property
    def size(self) -> int:
        return len(self.ranks)

    def sum_across_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Sum `values` (any shape, same on all ranks of the group) over the group, in place."""
        dist.all_reduce(values, group=self.channel)
        return values

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        """The first rank's `values` (any shape, same on all ranks of the group), in place."""
        dist.broadcast(values, src=self.ranks[0], group=self.channel)
        return values

    def gather_objects(self, local: T) -> list[T]:
        """One picklable object of every rank of the group, in the order of the ranks."""
        gathered: list[T] = [local] * self.size
        dist.all_gather_object(gathered, local, group=self.channel)
        return gathered


def ranks_by_host(places: Sequence[tuple[str, int]]) -> list[list[int]]:
    """Ranks that share a host, from the (host name, local rank) of every rank.

    A local rank that comes again under the same name is on another host: not every cluster names them apart.
    """
    hosts: dict[tuple[str, int], list[int]] = {}
    for rank, place in enumerate(places):
        hosts.setdefault((place[0], places[:rank].count(place)), []).append(rank)
    return list(hosts.values())


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a launcher put this process."""

    rank: int
    size: int
    local_rank: int


def find_place() -> Place:
    """Rank, size and local rank from deepspeed or torchrun, Open MPI or Slurm, in that order; else one rank.

    Raises:
        UserError: several ranks of a launcher that does not say where they are.
    """
    schemes = (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        # Of the step, not of the job (SLURM_NTASKS): the shells of sbatch and salloc have the job's.
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    )
    for names in schemes:
        if all(name in os.environ for name in names):
            rank, size, local_rank = (int(os.environ[name]) for name in names)
            return Place(rank=rank, size=size, local_rank=local_rank)
    if int(os.environ.get("PMI_SIZE", "1")) > 1:
        raise UserError(
            f"started by an MPI that tells PMI_SIZE={os.environ['PMI_SIZE']} only, without local ranks;"
            " use Open MPI's mpirun, torchrun, deepspeed or srun"
        )
    return Place(rank=0, size=1, local_rank=0)


def _slurm_master() -> str:
    listing = os.environ["SLURM_STEP_NODELIST"]
    try:
        hosts = subprocess.run(["scontrol", "show", "hostnames", listing], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise UserError(
            f"scontrol cannot tell the first of the hosts {listing} (in a container, perhaps);"
            " set MASTER_ADDR to its name"
        ) from None
    return hosts.stdout.split()[0]


def _export_rendezvous(place: Place) -> None:
    """Put into the environment what torch and DeepSpeed read, whatever launcher it was."""
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.size), LOCAL_RANK=str(place.local_rank))
    if "MASTER_ADDR" not in os.environ:
        on_slurm = "SLURM_STEP_NODELIST" in os.environ and place.size > 1
        several_hosts = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", place.size)) < place.size
        if several_hosts and not on_slurm:
            raise UserError(
                "mpirun on several hosts: MASTER_ADDR is not set; pass the first host's address, such as"
                " mpirun -x MASTER_ADDR=10.0.0.1"
            )
        os.environ["MASTER_ADDR"] = _slurm_master() if on_slurm else "127.0.0.1"
    if "MASTER_PORT" not in os.environ:
        # Jobs that share a host must not share a port; all ranks of one job know its number.
        job = int(os.environ.get("SLURM_JOB_ID", "0"))
        os.environ["MASTER_PORT"] = str(free_port() if place.size == 1 else DEFAULT_PORT + job % 3000)


def select_accelerator() -> None:
    """Tell DeepSpeed which accelerator to use; call it before DeepSpeed is first imported.

    Without it, DeepSpeed warns in every process on a CPU that it found no GPU.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def start_world() -> World:
    """Join the process group of this run (NCCL on GPUs, gloo on CPUs).

    Collective operations give up after DEEPSPEED_TIMEOUT minutes (default 30).

    Raises:
        UserError: a launcher started ranks without telling where they meet, or they cannot meet there.
    """
    select_accelerator()
    place = find_place()
    _export_rendezvous(place)
    on_gpu = torch.cuda.is_available()
    device = _choose_gpu(place) if on_gpu else torch.device("cpu")
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            rank=place.rank,
            world_size=place.size,
            timeout=_timeout(),
            device_id=device if on_gpu else None,
        )
    except dist.DistNetworkError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"the ranks cannot meet at {address} ({str(error).splitlines()[0]}); if another run uses that port,"
            " give this one its own, such as deepspeed --master_port 29501"
        ) from None
    return World(rank=place.rank, size=place.size, local_rank=place.local_rank, device=device)


def _timeout() -> timedelta:
    return timedelta(minutes=float(os.environ.get("DEEPSPEED_TIMEOUT", "30")))


def _choose_gpu(place: Place) -> torch.device:
    # With --gpus-per-task, Slurm shows each rank its own GPU only.
    index = 0 if torch.cuda.device_count() == 1 else place.local_rank
    if index >= torch.cuda.device_count():
        raise UserError(
            f"rank {place.rank} is number {place.local_rank} on its host, which shows it"
            f" {torch.cuda.device_count()} GPUs; start one rank for each GPU"
        )
    # DeepSpeed reads it as the number of the device.
    os.environ["LOCAL_RANK"] = str(index)
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def start_deepspeed() -> None:
    """Hand the process group to DeepSpeed; before any model is loaded into shards."""
    import deepspeed

    if not torch.cuda.is_available():
        # DeepSpeed compiles a shared-memory extension at start-up on CPUs: a minute of waiting, and
        # a lock file that hangs every later run when a rank is killed meanwhile. Gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed calls collectives by names that newer torch renames, hundreds of times in a step.
    warnings.filterwarnings(
        "ignore", message=".*is deprecated. Please use.*", category=FutureWarning, module="torch.distributed"
    )
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def end_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def exit_with_user_error(error: UserError) -> int:
    """Print the error once per host, or where it happened, leave the process group, and return the exit code."""
    try:
        is_first_here = find_place().local_rank == 0
    except UserError:
        is_first_here = True
    if is_first_here or isinstance(error, LoneUserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    # Before the interpreter ends: threads of gloo that meet its end abort the process with another exit code.
    end_world()
    return EXIT_CODE


def free_port() -> int:
    """A TCP port of this host that nobody uses at the moment.

    It is below the ports that systems give to outgoing connections (RFC 6335; from 32768 in Linux): ranks need
    many seconds until they listen, and a connection of anybody could be given the port meanwhile.

    Raises:
        UserError: hundreds of tries met a port in use.
    """
    for port in random.SystemRandom().sample(_PORTS, k=500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise UserError(f"no free TCP port found from {_PORTS.start} to {_PORTS.stop - 1}; end what listens on them")
