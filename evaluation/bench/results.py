"""Directory and machine of a measurement, and its results as JSON and table."""

import importlib.metadata
import os
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from evaluation.display import results_console
from kd.errors import UserError

GIB = 2**30
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_PACKAGES = ("torch", "deepspeed", "transformers")


def make_out(out: Path | None, *, command: str) -> Path:
    """Make the directory of results, a dated one in runs/ by default, and return it.

    Raises:
        UserError: it exists or cannot be made.
    """
    made = out or Path("runs") / f"bench-{command}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        made.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {made}: cannot be made ({error.strerror}); choose a new directory") from None
    return made


def describe_machine(*, num_ranks: int) -> dict[str, Any]:
    """Device, cores, vector instructions, threads, versions and command, for the record."""
    information = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", information.read_text() if information.exists() else "")
    return {
        "command": sys.orig_argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_ranks": num_ranks,
        "threads_per_rank": torch.get_num_threads(),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def describe_briefly(machine: dict[str, Any]) -> str:
    """One line for a table or a picture."""
    cpu = f"{machine['cpu']} ({machine['cpu_capability']}), {machine['cores']} cores"
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"{machine['gpus'][0] if machine['gpus'] else cpu}; ranks: {machine['num_ranks']}, threads of each:"
        f" {machine['threads_per_rank']}; {packages}; {machine['date'][:10]}"
    )


def print_results(table: Table, *, machine: dict[str, Any], out: Path) -> None:
    """Print the table, what it was measured on, and where the files are."""
    console = results_console()
    console.print(table)
    files = ", ".join(sorted(path.name for path in out.iterdir() if path.is_file()))
    console.print(describe_briefly(machine), f"{out}: {files}", sep="\n", markup=False, soft_wrap=True)
