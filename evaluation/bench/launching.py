"""Ranks of their own for a measurement that must not share processes with another."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from evaluation.bench.machine import counted
from kd.errors import UserError


def run_ranks(
    module: str, arguments: list[str], *, num_ranks: int, num_threads: int, result: Path, log: Path, **variables: str
) -> Any:
    """Run `python -m module arguments` on ranks of this host under torchrun.

    Args:
        result: JSON file that the first rank writes when all is measured; removed.
        log: gets the ranks' output.
        variables: changes of their environment.

    Returns:
        What the file holds.

    Raises:
        UserError: they failed before; carries the last lines of their output.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    # Threads are read when torch is imported.
    environment = os.environ | {"OMP_NUM_THREADS": str(num_threads)} | variables
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(
            [*command, "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    # Not the exit code: gloo's threads can abort a rank at its very end, when nothing is left to lose.
    if not result.exists():
        lines = log.read_text(encoding="utf-8").splitlines()
        reasons = [line for line in lines if line.startswith(("error:", "[rank0]:"))] or lines
        raise UserError(
            f"{module} failed on {counted(num_ranks, 'rank')} ({' | '.join(reasons[-3:])}); all of it is in {log}"
        )
    found = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    return found


def threads_per_rank(num_ranks: int) -> int:
    """Cores of this process divided among ranks; at least 1."""
    if torch.cuda.is_available():
        return 1
    return max(1, len(os.sched_getaffinity(0)) // num_ranks)
