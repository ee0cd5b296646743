"""Two ranks under the mpirun of Open MPI and of MPICH, with and without environment variables that give the ranks."""

import json
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kd.distributed import free_port
from tests.integration.slurm_cluster import host_resolves
from tests.integration.tiny_run import launch

# Takes a host and a command as ssh does, and runs the command on this host.
AGENT = '#!/bin/sh\nshift\nexec sh -c "$*"\n'


@dataclass(frozen=True, kw_only=True)
class Mpi:
    """An installed MPI: its commands for two ranks, and the variables that give the ranks on one host."""

    one_host: list[str]
    two_hosts: list[str]
    telling: list[str]
    environment: dict[str, str]

    def run(self, command: list[str], *options: str, folder: Path, without: list[str], **variables: str) -> Any:
        unset = [word for name in without for word in ("-u", name)]
        job = [sys.executable, "-m", "tests.integration.mpi_job", str(folder), *options]
        return launch([*command, "env", *unset, *job], timeout=120, **self.environment, **variables)


@pytest.fixture(params=["openmpi", "mpich"])
def mpi(request: pytest.FixtureRequest, tmp_path: Path) -> Mpi:
    program, package = {
        "openmpi": ("mpirun.openmpi", "openmpi-bin"),
        "mpich": ("mpirun.mpich", "mpich"),
    }[request.param]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (Debian: {package})")
    if request.param == "openmpi":
        # By another name: mpirun passes options to an agent that is called ssh.
        agent = tmp_path / "start_here"
        agent.write_text(AGENT, encoding="utf-8")
        agent.chmod(0o755)
        mpirun = [program, "--bind-to", "none", "-np", "2"]
        return Mpi(
            one_host=[*mpirun, "--oversubscribe"],
            two_hosts=[*mpirun, "--mca", "plm_rsh_agent", str(agent), "--host", "localhost,127.0.0.2"],
            telling=[f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
            environment={"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"},
        )
    # Debian names it otherwise than MPICH, and mpi4py's wheel asks for MPICH's name.
    for library in Path("/usr/lib").glob("*/libmpich.so.12"):
        (tmp_path / "libmpi.so.12").symlink_to(library)
    return Mpi(
        one_host=[program, "-np", "2"],
        two_hosts=[program, "-np", "2", "-launcher", "fork", "-hosts", "localhost,127.0.0.2"],
        telling=["MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
        environment={"LD_LIBRARY_PATH": str(tmp_path)},
    )


def found_in(folder: Path) -> list[dict[str, Any]]:
    """What the ranks wrote, by rank."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted(found, key=lambda one: one["rank"])


def two_ranks(*, local_ranks: tuple[int, int], address: str, mpi4py: bool) -> list[dict[str, Any]]:
    shared = {"sum": 3.0, "address": address, "mpi4py": mpi4py}
    return [{"rank": [rank, 2, local], **shared} for rank, local in enumerate(local_ranks)]


def show(finished: subprocess.CompletedProcess[str]) -> str:
    return finished.stdout + finished.stderr


def test_variables_tell_the_ranks_and_mpi4py_is_not_imported(mpi: Mpi, tmp_path: Path) -> None:
    finished = mpi.run(mpi.one_host, "--deepspeed", folder=tmp_path, without=[], MASTER_PORT=str(free_port()))
    assert finished.returncode == 0, show(finished)
    assert found_in(tmp_path) == two_ranks(local_ranks=(0, 1), address="127.0.0.1", mpi4py=False)


@pytest.mark.parametrize("options", [[], ["--own-mpi"]], ids=["", "script uses MPI itself"])
def test_mpi_tells_the_ranks_where_variables_do_not(mpi: Mpi, options: list[str], tmp_path: Path) -> None:
    finished = mpi.run(mpi.one_host, *options, folder=tmp_path, without=mpi.telling)
    assert finished.returncode == 0, show(finished)
    assert found_in(tmp_path) == two_ranks(local_ranks=(0, 1), address="127.0.0.1", mpi4py=True)


@pytest.mark.skipif(not host_resolves(), reason="this machine's own name does not resolve")
def test_mpi_tells_several_hosts_where_to_meet(mpi: Mpi, tmp_path: Path) -> None:
    finished = mpi.run(mpi.two_hosts, folder=tmp_path, without=[])
    assert finished.returncode == 0, show(finished)
    assert found_in(tmp_path) == two_ranks(local_ranks=(0, 0), address=socket.gethostname(), mpi4py=True)


# MPICH's mpirun would leave the other rank waiting until its timeout.
@pytest.mark.parametrize("mpi", ["openmpi"], indirect=True)
def test_a_rank_that_fails_after_mpi_was_asked_ends_the_run(mpi: Mpi, tmp_path: Path) -> None:
    finished = mpi.run(mpi.one_host, "--fail", folder=tmp_path, without=mpi.telling)
    assert finished.returncode == 3
    assert found_in(tmp_path) == []


# Open MPI's library ends such a run by itself.
@pytest.mark.parametrize("mpi", ["mpich"], indirect=True)
def test_ranks_that_mpi_does_not_find_are_an_error(mpi: Mpi, tmp_path: Path) -> None:
    finished = mpi.run(mpi.one_host, folder=tmp_path, without=["PMI_RANK", "PMI_SIZE"])
    assert finished.returncode == 2
    assert "error: mpirun set MPI_LOCALNRANKS=2, but mpi4py finds 1 of these ranks" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_process_without_mpi_does_not_import_mpi4py(tmp_path: Path) -> None:
    finished = launch([sys.executable, "-m", "tests.integration.mpi_job", str(tmp_path)], timeout=60)
    assert finished.returncode == 0, show(finished)
    assert [(one["rank"], one["mpi4py"]) for one in found_in(tmp_path)] == [([0, 1, 0], False)]
