"""Training with two ranks under every launcher."""

import shutil
from pathlib import Path

import pytest

from kd.distributed import free_port
from tests.integration.tiny_run import assert_trained, launch, write_tiny_config, write_tiny_pair

SCRIPT = "launch/train_promptkd.py"
LAUNCHERS = ("deepspeed", "deepspeed with a hostfile", "torchrun", "mpirun")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_pair(directory)
    return write_tiny_config(directory)


def command(launcher: str, *, directory: Path) -> list[str]:
    port = str(free_port())
    match launcher:
        case "deepspeed":
            return ["deepspeed", "--num_gpus", "2", "--master_port", port, SCRIPT]
        case "deepspeed with a hostfile":
            hostfile = directory / "hostfile"
            hostfile.write_text("localhost slots=2\n", encoding="utf-8")
            here = ["--no_ssh", "--node_rank", "0", "--master_addr", "127.0.0.1", "--master_port", port]
            return ["deepspeed", "--hostfile", str(hostfile), *here, SCRIPT]
        case "torchrun":
            return ["torchrun", "--nproc_per_node", "2", "--master_port", port, SCRIPT]
        case _:
            if shutil.which("mpirun.openmpi") is None:
                pytest.skip("mpirun.openmpi is not installed (Debian: openmpi-bin)")
            as_root = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
            return ["mpirun.openmpi", *as_root, "-np", "2", "-x", f"MASTER_PORT={port}", "python", SCRIPT]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_ranks_train_under_every_launcher(launcher: str, config: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    finished = launch([*command(launcher, directory=tmp_path), "--config", str(config), f"run.dir={run_dir}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert_trained(run_dir, num_ranks=2)
