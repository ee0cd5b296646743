"""The launcher of this process: which rank it gave, and where the ranks meet.

The only module that reads RANK, SLURM_*, OMPI_* or PMI_* from the environment, and the only one that asks MPI.
"""

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal

from kd.errors import UserError

DEFAULT_PORT = 29500
"""The port of a run of several ranks without MASTER_PORT; Slurm jobs use this one and above."""
_FREE_PORTS = range(20000, DEFAULT_PORT)

Launcher = Literal["torch", "openmpi", "hydra", "slurm", "mpi", "none"]
"""`torch` is deepspeed or torchrun, `hydra` is MPICH or Intel MPI, `mpi` is an MPI whose library gave the ranks."""

# Names of rank, size and local rank. MPI comes before Slurm: mpirun may use srun to start its own daemons.
_VARIABLES: dict[Launcher, tuple[str, str, str]] = {
    "torch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "hydra": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    # The size of the step, not of the job (SLURM_NTASKS), which the shells of sbatch and salloc have, too.
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}
_LOCAL_SIZES: dict[Launcher, str] = {"openmpi": "OMPI_COMM_WORLD_LOCAL_SIZE", "hydra": "MPI_LOCALNRANKS"}
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", *_LOCAL_SIZES.values())
_MPI_EVIDENCE = (*_VARIABLES["openmpi"], *_VARIABLES["hydra"], *_MPI_SIZES, "PMIX_RANK")
_MPI_REMEDY = (
    "set MPI4PY_LIBMPI to the library of the MPI that mpirun belongs to,"
    " or set RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR"
)


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """The rank that a launcher gave this process."""

    rank: int
    size: int
    local_rank: int
    launcher: Launcher


def rank_from_environment() -> RankInfo | None:
    """The rank in the launcher's variables; None if no launcher set all of its variables.

    Raises:
        UserError: the variables do not describe a rank.
    """
    for launcher, names in _VARIABLES.items():
        if all(name in os.environ for name in names):
            rank, size, local_rank = (_number(name) for name in names)
            if not (0 <= rank < size and 0 <= local_rank < size):
                found = ", ".join(f"{name}={os.environ[name]}" for name in names)
                raise UserError(f"{found} do not describe a rank; ranks count from 0 and are smaller than the size")
            return RankInfo(rank=rank, size=size, local_rank=local_rank, launcher=launcher)
    return None


def find_rank() -> RankInfo:
    """The rank of this process: from the launcher's variables, else from MPI if an MPI started it, else 0 of 1.

    All ranks must call it, because querying MPI is collective.

    Raises:
        UserError: the variables are incomplete or wrong, or mpi4py cannot find the ranks.
    """
    info = rank_from_environment()
    if info is None and any(name in os.environ for name in _MPI_EVIDENCE):
        info, *_ = _ask_mpi()
    if info is None and ("RANK" in os.environ or _number("WORLD_SIZE") > 1):
        missing = ", ".join(name for name in _VARIABLES["torch"] if name not in os.environ)
        raise UserError(f"RANK or WORLD_SIZE is set, but not {missing}; set all three, or unset them to run one rank")
    return info or RankInfo(rank=0, size=1, local_rank=0, launcher="none")


def find_rendezvous(info: RankInfo) -> tuple[str, int]:
    """The address and port at which rank 0 listens: MASTER_ADDR and MASTER_PORT, or those that the launcher gives.

    Raises:
        UserError: there are several hosts, and the address of the first is unknown.
    """
    address, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT")
    if address is None:
        local_size = _number(_LOCAL_SIZES.get(info.launcher, ""))
        if info.size in (1, local_size):
            address = "127.0.0.1"
        elif info.launcher in ("openmpi", "hydra", "mpi"):
            _, address, free = _ask_mpi()
            port = port or free
            try:
                socket.getaddrinfo(address, None)
            except socket.gaierror:
                here = socket.gethostname()
                raise UserError(f"{here} cannot resolve {address}, rank 0's host; set MASTER_ADDR to its IP") from None
        elif "SLURM_STEP_NODELIST" in os.environ:
            address = _first_slurm_host()
        else:
            raise UserError(f"WORLD_SIZE={info.size}, but MASTER_ADDR is not set; set it to the name of rank 0's host")
    if not port:
        # Jobs that share a host must not share a port; all ranks of one job know its number.
        port = free_port() if info.size == 1 else DEFAULT_PORT + _number("SLURM_JOB_ID") % 3000
    return address, port


def slurm_job() -> str | None:
    """The number of the Slurm job that this process belongs to."""
    return os.environ.get("SLURM_JOB_ID")


def free_port() -> int:
    """A TCP port of this host that is free at the moment.

    It is below the ephemeral ports (RFC 6335; from 32768 in Linux): ranks need many seconds until they listen, and
    any outgoing connection could be given the port meanwhile.

    Raises:
        UserError: hundreds of ports were tried and all are in use.
    """
    for port in random.SystemRandom().sample(_FREE_PORTS, k=500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise UserError(f"no free TCP port found from {_FREE_PORTS[0]} to {_FREE_PORTS[-1]}; end processes that use them")


def _number(name: str) -> int:
    """An integer variable; 0 if it is not set."""
    value = os.environ.get(name, "0")
    try:
        return int(value)
    except ValueError:
        raise UserError(f"{name}={value} is not an integer; correct or unset it") from None


def _first_slurm_host() -> str:
    listing = os.environ["SLURM_STEP_NODELIST"]
    try:
        hosts = subprocess.run(["scontrol", "show", "hostnames", listing], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise UserError(
            f"scontrol cannot list the hosts {listing} (it is often missing in containers);"
            " set MASTER_ADDR to the name of the first"
        ) from None
    return hosts.stdout.split()[0]


def _ask_mpi() -> tuple[RankInfo, str, int]:
    info, address, port = _query_mpi()
    for name in _MPI_SIZES:
        if _number(name) > info.size:
            raise UserError(
                f"mpirun set {name}={os.environ[name]}, but mpi4py finds {info.size} of these ranks;"
                f" it may have loaded the library of another MPI: {_MPI_REMEDY}"
            )
    return info, address, port


@cache
def _query_mpi() -> tuple[RankInfo, str, int]:
    """Rank, and address and port of rank 0, from the MPI library, once in a process; collective."""
    mpi = _load_mpi()
    # A script may use MPI itself. Otherwise MPI ends here: at the interpreter's exit, MPI_Finalize of a failed rank
    # would wait for all other ranks, while these wait for it in the rendezvous.
    is_ours = not mpi.Is_initialized()
    if is_ours:
        mpi.Init()
    world = mpi.COMM_WORLD
    local = world.Split_type(mpi.COMM_TYPE_SHARED)
    host = "127.0.0.1" if local.size == world.size else socket.gethostname()
    address, port = world.bcast((host, free_port()))
    info = RankInfo(rank=world.rank, size=world.size, local_rank=local.rank, launcher="mpi")
    if is_ours:
        mpi.Finalize()
    return info, address, port


def _load_mpi() -> ModuleType:
    # Several MPIs may be installed. mpi4py loads the first library it finds; only that of this mpirun knows the ranks.
    if not {"MPI4PY_LIBMPI", "MPI4PY_MPIABI"} & set(os.environ):
        by_hydra = any(name in os.environ for name in (*_VARIABLES["hydra"], _LOCAL_SIZES["hydra"]))
        libraries = ["libmpi.so.12"] if by_hydra else ["libmpi.so.40", "libmpi.so.12"]
        folders = [f"{sys.prefix}/lib/", ""]
        os.environ["MPI4PY_LIBMPI"] = os.pathsep.join(f"{folder}{name}" for name in libraries for folder in folders)
    try:
        import mpi4py

        mpi4py.rc(initialize=False, finalize=False)
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = "; ".join(str(error).splitlines())
        raise UserError(f"an MPI started this process, but mpi4py does not load ({reason}); {_MPI_REMEDY}") from None
    return MPI
