"""The batch script on a real Slurm of two nodes, one rank on each."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kd.distributed import free_port
from kd.train.metric_log import read_metrics
from tests.integration.slurm_cluster import host_resolves, loopback_cluster, missing_programs
from tests.integration.tiny_run import launch, write_tiny_config, write_tiny_pair

pytestmark = [
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd on loopback needs root"),
    pytest.mark.skipif(not host_resolves(), reason="this machine's own name does not resolve"),
]


NUM_STEPS = 40


def test_two_nodes_train_with_the_batch_script_and_a_job_that_is_told_to_stop_goes_on(tmp_path: Path) -> None:
    """SIGUSR1, as before the time limit: the state is saved, the job requeued, and its second start ends the run."""
    write_tiny_pair(tmp_path)
    config = write_tiny_config(tmp_path, schedule={"steps": NUM_STEPS}, checkpoints={"every": 1000})
    log, run_dir = tmp_path / "job.log", tmp_path / "on-slurm"
    shape = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--time=5"]
    script = ["launch/slurm/train.sbatch", str(config), f"run.dir={run_dir}"]
    with loopback_cluster() as cluster:
        variables = {"MASTER_PORT": str(free_port()), **cluster.environment}
        submitted = launch(["sbatch", "--parsable", *shape, f"--output={log}", *script], **variables)
        assert submitted.returncode == 0, submitted.stderr
        job = submitted.stdout.strip()

        def wait_for(condition: Callable[[], bool], *, seconds: float = 120) -> None:
            deadline = time.monotonic() + seconds
            while not condition():
                shown = log.read_text(encoding="utf-8") if log.exists() else ""
                assert time.monotonic() < deadline, cluster.logs() + shown
                time.sleep(0.1)

        metrics = run_dir / "metrics.jsonl"
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
        launch(["scancel", "--signal=USR1", job], **variables)
        wait_for((run_dir / "final" / "manifest.json").exists)
        wait_for(lambda: "done: the student is in" in log.read_text(encoding="utf-8"))
    told = (run_dir / "log.txt").read_text(encoding="utf-8")
    (step,) = re.findall(r"SIGUSR1: stopped after step (\d+) of 40", told)
    assert f"resuming after step {step} of 40" in told
    assert [record["step"] for record in read_metrics(run_dir)] == list(range(1, NUM_STEPS + 1))
    assert json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["num_ranks"] == 2
