"""The directory of a run: what was asked, on what, and whether it may go on there."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from kd.config.load import to_yaml
from kd.config.schema import Config
from kd.distributed import World
from kd.errors import UserError
from kd.methods import load_config

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
LOG_FILE = "log.txt"
_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "safetensors")

RESUMABLE_SECTIONS = ("run", "checkpoints")
"""Sections that may change when a run resumes (except run.seed): they do not affect the result of training."""
RESUMABLE_FIELDS = (
    "model.gradient_checkpointing",
    "schedule.micro_batch",
    "engine.gather",
    "engine.loss_chunk_mib",
    "engine.inference_batch_tokens",
    "generation.max_batch_tokens",
    "generation.keep_weights",
    "generation.layout",
    "generation.tensor_parallel_size",
)


def prepare_run_directory(config: Config, *, command: Sequence[str], world: World) -> Path:
    """Make run.dir, or check that this run may go on in it, and write what was asked; main rank only.

    Raises:
        UserError: no permission, run.resume=never in a used directory, or checkpoints of other settings there.
    """
    directory = Path(config.run.dir)
    if not world.is_main:
        return directory
    previous = directory / CONFIG_FILE
    if previous.exists() and config.run.resume == "never":
        raise UserError(f"run.dir {directory}: holds a run already; choose another, or run.resume=auto to go on")
    if previous.exists() and any(directory.glob("checkpoints/step-*[0-9]")):
        _check_same_course(config, previous)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Both are written beside and moved: a killed start leaves no half of a file.
        _replace(previous, to_yaml(config))
        facts = json.dumps(_environment(command, world=world), indent=2)
        _replace(directory / ENVIRONMENT_FILE, facts + "\n")
        (directory / LOG_FILE).open("a").close()
    except OSError as error:
        raise UserError(
            f"run.dir {directory}: cannot be written ({error.strerror}); choose a writable directory"
        ) from None
    return directory


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _check_same_course(config: Config, previous: Path) -> None:
    old, new = _flatten(asdict(load_config(previous))), _flatten(asdict(config))
    for name, value in new.items():
        free = name.split(".")[0] in RESUMABLE_SECTIONS and name != "run.seed"
        if not free and name not in RESUMABLE_FIELDS and old[name] != value:
            raise UserError(
                f"run.dir {previous.parent}: was started with {name}={old[name]}, now it is {value};"
                " restore it to go on, or choose another run.dir"
            )


def _flatten(values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{section}.{name}": inner for name, inner in value.items()}
        else:
            flat[section] = value
    return flat


def _environment(command: Sequence[str], *, world: World) -> dict[str, Any]:
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": [sys.executable, *command],
        "directory": os.getcwd(),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "num_ranks": world.size,
        "host": platform.node(),
        "devices": devices or [platform.processor() or platform.machine()],
    }


def _git_revision() -> str | None:
    """Revision of this source tree; None outside of git."""
    here = Path(__file__).resolve().parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
