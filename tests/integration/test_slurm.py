"""The batch script on a real Slurm of two nodes, one rank on each."""

import os
from pathlib import Path

import pytest

from kd.distributed import free_port
from tests.integration.slurm_cluster import host_resolves, loopback_cluster, missing_programs
from tests.integration.tiny_run import assert_trained, launch, write_tiny_config, write_tiny_pair

pytestmark = [
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd on loopback needs root"),
    pytest.mark.skipif(not host_resolves(), reason="this machine's own name does not resolve"),
]


def test_two_nodes_train_with_the_batch_script(tmp_path: Path) -> None:
    write_tiny_pair(tmp_path)
    config = write_tiny_config(tmp_path)
    log = tmp_path / "job.log"
    shape = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--time=5"]
    with loopback_cluster() as cluster:
        finished = launch(
            [
                "sbatch",
                "--wait",
                *shape,
                f"--output={log}",
                "launch/slurm/train.sbatch",
                str(config),
                f"run.dir={tmp_path / 'on-slurm'}",
            ],
            MASTER_PORT=str(free_port()),
            **cluster.environment,
        )
        shown = log.read_text(encoding="utf-8") if log.exists() else ""
        assert finished.returncode == 0, cluster.logs() + finished.stdout + finished.stderr + shown
    assert_trained(tmp_path / "on-slurm", num_ranks=2)
