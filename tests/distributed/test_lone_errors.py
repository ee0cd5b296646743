"""A rank that fails alone prints its traceback and ends, whatever the other ranks wait for."""

import subprocess
import sys
from pathlib import Path

import pytest

from kd.distributed import free_port
from tests.integration.tiny_run import ROOT, launcher_environment

JOB = Path(__file__).with_name("lone_error_job.py")


@pytest.mark.parametrize("entry_point", ["api", "command"])
def test_a_rank_that_fails_alone_ends_at_once(entry_point: str) -> None:
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(JOB), entry_point],
            cwd=ROOT,
            env=launcher_environment() | address | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(ROOT)},
            # Open until the test ends: a rank that destroys its process group waits for it.
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        assert ranks[1].wait(timeout=120) == 1
        assert ranks[1].stderr is not None and ranks[1].stdout is not None
        assert "ValueError: known to one rank" in ranks[1].stderr.read()
        assert "destroys the process group" not in ranks[1].stdout.read()
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
