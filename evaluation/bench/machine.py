"""What a measurement ran on."""

import importlib.metadata
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "deepspeed", "transformers")


def describe_machine(*, num_ranks: int) -> dict[str, Any]:
    """Device, cores, vector instructions, threads, versions and command, for the record."""
    return {
        "command": sys.orig_argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "num_ranks": num_ranks,
        "threads_per_rank": torch.get_num_threads(),
        "cpu": _cpu_name(),
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


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
