"""What a measurement ran on."""

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

_PACKAGES = ("torch", "deepspeed", "transformers", "trl")


def describe_machine(*, num_ranks: int) -> dict[str, Any]:
    """Device, cores, threads, versions and command, for the record."""
    return {
        "command": sys.orig_argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_ranks": num_ranks,
        "threads_per_rank": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def describe_in_short(machine: dict[str, Any]) -> str:
    """One line for a picture."""
    device = machine["gpus"][0] if machine["gpus"] else f"{machine['cpu']}, {machine['cores']} cores"
    ranks, threads = counted(machine["num_ranks"], "rank"), counted(machine["threads_per_rank"], "thread")
    packages = machine["packages"]
    return (
        f"{device}; {ranks} × {threads};"
        f" torch {packages['torch']}, deepspeed {packages['deepspeed']}, transformers {packages['transformers']};"
        f" {machine['date'][:10]}"
    )


def counted(number: int, noun: str) -> str:
    """The number with its noun: 1 rank, 2 ranks."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
