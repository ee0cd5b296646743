"""Ranks from every launcher's environment, and what one rank alone does."""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from kd.distributed import (
    DEFAULT_PORT,
    RankInfo,
    World,
    end_world,
    exit_with_user_error,
    find_rank,
    free_port,
    on_gpu,
    start_world,
)
from kd.distributed.session import refuse_shared_gpus
from kd.errors import UserError

RANK_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
BATCH_SHELL = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
SLURM_STEP = BATCH_SHELL | {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
# The shell of salloc is a step of one task, in a job of several.
ALLOCATION_SHELL = BATCH_SHELL | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without any launcher; what a test exports is gone after it."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name in RANK_NAMES or name.startswith(("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI")):
            monkeypatch.delenv(name)
    yield monkeypatch
    end_world()
    for name in RANK_NAMES:
        if name not in before:
            os.environ.pop(name, None)


def put(environment: pytest.MonkeyPatch, *variables: dict[str, str]) -> None:
    for some in variables:
        for name, value in some.items():
            environment.setenv(name, value)


ALONE = RankInfo(rank=0, size=1, local_rank=0, launcher="none")
OF_TORCHRUN = RankInfo(rank=5, size=8, local_rank=1, launcher="torch")
OF_OPEN_MPI = RankInfo(rank=3, size=4, local_rank=2, launcher="openmpi")
OF_HYDRA = RankInfo(rank=3, size=4, local_rank=1, launcher="hydra")
OF_SLURM = RankInfo(rank=1, size=2, local_rank=0, launcher="slurm")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ([], ALONE),
        ([TORCHRUN], OF_TORCHRUN),
        ([OPEN_MPI], OF_OPEN_MPI),
        ([HYDRA], OF_HYDRA),
        ([SLURM_STEP], OF_SLURM),
        # The shell of a batch script is no rank: python in it, without srun, is a run of its own.
        ([BATCH_SHELL], ALONE),
        ([ALLOCATION_SHELL], replace(ALONE, launcher="slurm")),
        # The launcher closest to the process counts.
        ([TORCHRUN, SLURM_STEP], OF_TORCHRUN),
        ([OPEN_MPI, SLURM_STEP], OF_OPEN_MPI),
        ([HYDRA, SLURM_STEP], OF_HYDRA),
        # Batch scripts export it for programs that read the rank from Slurm.
        ([{"WORLD_SIZE": "2"}, SLURM_STEP], OF_SLURM),
    ],
    ids=[
        *("alone", "torchrun", "Open MPI", "hydra", "srun", "batch shell", "salloc"),
        *("torchrun in srun", "Open MPI in srun", "hydra in srun", "WORLD_SIZE in srun"),
    ],
)
def test_rank_comes_from_the_launcher(
    environment: pytest.MonkeyPatch, variables: list[dict[str, str]], expected: RankInfo
) -> None:
    put(environment, *variables)
    assert find_rank() == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "2"}, "RANK or WORLD_SIZE is set, but not WORLD_SIZE, LOCAL_RANK"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK or WORLD_SIZE is set, but not RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "RANK=x is not an integer"),
        (
            {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
            "RANK=2, WORLD_SIZE=2, LOCAL_RANK=0 do not describe a rank",
        ),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "MASTER_ADDR is not set"),
        (TORCHRUN | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "http"}, "MASTER_PORT=http is not an integer"),
        # An MPI that does not give local ranks, and whose library is not installed.
        ({"PMI_RANK": "1", "PMI_SIZE": "4", "MPI4PY_LIBMPI": "/no/libmpi.so"}, "mpi4py does not load .*/no/libmpi.so"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "MPI4PY_LIBMPI": "/no/libmpi.so"}, "mpi4py does not load"),
        (SLURM_STEP | {"SLURM_STEP_NODELIST": "n[1-2]", "PATH": ""}, "scontrol cannot list the hosts n\\[1-2\\]"),
    ],
)
def test_variables_that_do_not_tell_rank_and_rendezvous_are_an_error(
    environment: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    put(environment, variables)
    with pytest.raises(UserError, match=message):
        start_world()


def test_ranks_that_do_not_come_are_an_error_after_the_timeout(environment: pytest.MonkeyPatch) -> None:
    put(environment, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "DEEPSPEED_TIMEOUT": "0.02"})
    put(environment, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})
    with pytest.raises(UserError, match="the ranks cannot meet at 127.0.0.1:.* start all 2 ranks"):
        start_world()


def test_a_process_without_a_launcher_is_a_world_of_one(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MASTER_PORT", str(free_port()))
    world = start_world()
    assert (world.rank, world.size, world.local_rank, world.is_main) == (0, 1, 0, True)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


def test_a_free_port_is_one_that_no_outgoing_connection_is_given() -> None:
    with socket.socket() as taken:
        taken.bind(("", free_port()))
        ports = {free_port() for _ in range(20)}
        assert taken.getsockname()[1] not in ports
    assert len(ports) > 1
    # Linux hands out 32768 and above; Slurm jobs meet at DEFAULT_PORT and above.
    assert all(1024 < port < DEFAULT_PORT < 32768 for port in ports)


def test_no_free_port_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("Address already in use")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UserError, match="no free TCP port found from 20000 to 29499"):
        free_port()


def lone_world() -> World:
    return World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def test_one_rank_needs_no_process_group() -> None:
    world = lone_world()
    assert world.gather_counts([3, 4]) == [[3, 4]]
    assert world.gather_objects("x") == ["x"]
    assert torch.equal(world.sum_across_ranks(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    assert torch.equal(world.max_across_ranks(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    world.barrier()


def test_agreement_passes_user_errors_on_and_leaves_others_alone() -> None:
    with pytest.raises(UserError, match="unchanged message"), lone_world().agreed():
        raise UserError("unchanged message")
    with pytest.raises(KeyError), lone_world().agreed():
        raise KeyError("a defect, not an input")


def disagree(world: World) -> str:
    try:
        with world.agreed():
            if world.rank == 1:
                raise UserError("rank 1 alone")
    except UserError as error:
        return str(error)
    return "no error"


def test_an_error_of_one_rank_is_the_error_of_all(ranks) -> None:
    assert ranks(2).run(disagree) == ["rank 1 alone", "rank 1 alone"]


def count_and_sum(world: World) -> tuple[list[list[int]], float, float]:
    local = torch.tensor([float(world.rank + 1)])
    return (
        world.gather_counts([world.rank + 1, 5]),
        world.sum_across_ranks(local.clone()).item(),
        world.max_across_ranks(local.clone()).item(),
    )


def test_counts_sums_and_maxima_are_over_all_ranks(ranks) -> None:
    assert ranks(2).run(count_and_sum) == [([[1, 5], [2, 5]], 3.0, 2.0)] * 2


def test_an_error_is_printed_once_on_each_host(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, local in ((0, 0), (1, 1), (2, 0), (3, 1)):
        put(environment, {"RANK": str(rank), "WORLD_SIZE": "4", "LOCAL_RANK": str(local)})
        assert exit_with_user_error(UserError("what to do")) == 2
    assert capsys.readouterr().err == "error: what to do\n" * 2


@pytest.mark.parametrize(("uuids", "shared"), [(["a", "b", "c"], None), (["a", "b", "b"], "ranks 1 and 2 share a GPU")])
def test_ranks_that_share_a_gpu_are_refused_on_all_ranks(uuids: list[str], shared: str | None) -> None:
    store = dist.HashStore()

    def start(rank: int) -> str | None:
        info = RankInfo(rank=rank, size=len(uuids), local_rank=rank, launcher="torchrun")
        try:
            refuse_shared_gpus(store, info, uuid=uuids[rank])
        except UserError as error:
            return str(error).split(";")[0]
        return None

    with ThreadPoolExecutor(len(uuids)) as pool:
        assert list(pool.map(start, range(len(uuids)))) == [shared] * len(uuids)


def test_a_cpu_can_be_chosen_on_a_machine_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert on_gpu()
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert not on_gpu()


RANK = """
import pathlib, signal, sys, time
from kd.distributed.orphan import end_with_launcher
signal.signal(signal.SIGTERM, lambda *_: pathlib.Path(sys.argv[1]).touch())
end_with_launcher()
print("ready", flush=True)
time.sleep(20)
"""
LAUNCHER = "import subprocess, sys; subprocess.run(sys.argv[1:])"


@pytest.mark.parametrize("starter", ["launcher", "shell"])
def test_a_rank_is_told_to_stop_when_its_launcher_is_killed(starter: str, tmp_path: Path) -> None:
    """A shell is none: `nohup` and a login that ends leave their processes running."""
    told = tmp_path / "told"
    rank = [sys.executable, "-c", RANK, str(told)]
    command = ["sh", "-c", f"{shlex.join(rank)}; :"] if starter == "shell" else [sys.executable, "-c", LAUNCHER, *rank]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        (child,) = psutil.Process(process.pid).children()
        try:
            process.kill()
            deadline = time.monotonic() + (10 if starter == "launcher" else 3)
            while not told.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            assert told.exists() == (starter == "launcher")
        finally:
            child.kill()
