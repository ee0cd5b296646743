"""The directory of a run: its configuration and environment, and whether a run may resume there."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from kd.config.load import describe_fields, to_yaml
from kd.config.schema import Config
from kd.distributed import World
from kd.errors import UserError
from kd.files import write_atomically
from kd.methods import load_config

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
LOG_FILE = "log.txt"
_CHANGEABLE = ("optimizer.learning_rate", "optimizer.grad_clip", "prompt.learning_rate")
"""What run.resume=changed may change."""
_RESULTS = ("checkpoints/step-*[0-9]", "best", "final", "exports/*")
_PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "safetensors")

RESUMABLE_SECTIONS = ("run", "checkpoints")
"""Sections that may change when a run resumes (except run.seed): they do not affect the result of training."""
RESUMABLE_FIELDS = (
    "model.gradient_checkpointing",
    "schedule.micro_batch",
    "schedule.micro_tokens",
    "schedule.packing",
    "engine.gather",
    "engine.loss_chunk_mib",
    "engine.inference_batch_tokens",
    "generation.max_batch_tokens",
    "generation.keep_weights",
    "generation.cuda_graphs",
    "generation.layout",
    "generation.tensor_parallel_size",
)


def prepare_run_directory(
    config: Config,
    *,
    contents: Mapping[str, str],
    command: Sequence[str],
    world: World,
    say: Callable[[str], None],
) -> Path:
    """Make run.dir, or check that this run may resume in it, and write its configuration; main rank only.

    `contents` are checksums of what the run learns from. `say` receives a line for each package that has changed.

    Raises:
        UserError: no permission, run.resume=never in a used directory, or results of other settings or contents there.
    """
    directory = Path(config.run.dir)
    if not world.is_main:
        return directory
    previous = directory / CONFIG_FILE
    if previous.exists() and config.run.resume == "never":
        raise UserError(f"run.dir {directory}: holds a run already; choose another, or set run.resume=auto to resume")
    environment = _environment(command, contents=contents, world=world)
    if previous.exists() and any(path for results in _RESULTS for path in directory.glob(results)):
        _check_same_course(config, previous)
        _check_same_environment(environment, directory / ENVIRONMENT_FILE, say=say)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(previous, to_yaml(config))
        facts = json.dumps(environment, indent=2)
        write_atomically(directory / ENVIRONMENT_FILE, facts + "\n")
        (directory / LOG_FILE).open("a").close()
    except OSError as error:
        raise UserError(
            f"run.dir {directory}: cannot be written ({error.strerror}); choose a writable directory"
        ) from None
    return directory


def _check_same_course(config: Config, previous: Path) -> None:
    started = load_config(previous)
    for name, _, _ in describe_fields(type(config)):
        if name in RESUMABLE_FIELDS or (name.split(".")[0] in RESUMABLE_SECTIONS and name != "run.seed"):
            continue
        if config.run.resume == "changed" and name in _CHANGEABLE:
            continue
        old, new = attrgetter(name)(started), attrgetter(name)(config)
        if old != new:
            allowed = "set run.resume=changed, " if name in _CHANGEABLE else ""
            raise UserError(
                f"run.dir {previous.parent}: was started with {name}={old}, now it is {new};"
                f" restore it to resume, {allowed}or choose another run.dir"
            )


def _check_same_environment(environment: Mapping[str, Any], previous: Path, *, say: Callable[[str], None]) -> None:
    """Refuse other contents, and tell of other versions."""
    try:
        started = json.loads(previous.read_bytes())
        contents, versions = started["contents"], started["packages"] | {"this project": started["git_revision"]}
    except (OSError, ValueError, KeyError, TypeError):
        say(f"{previous}: is missing or damaged; the contents of the data were not compared with those before")
        return
    for name, checksum in environment["contents"].items():
        if contents.get(name) != checksum:
            raise UserError(
                f"run.dir {previous.parent}: was started with other contents of {name} (the file, its template or the"
                " tokenizer has changed); restore them to resume, or choose another run.dir"
            )
    for name, version in (environment["packages"] | {"this project": environment["git_revision"]}).items():
        if versions.get(name) != version:
            say(f"{name} was {versions.get(name)} when the run was started, now it is {version}: numbers may differ")


def _environment(command: Sequence[str], *, contents: Mapping[str, str], world: World) -> dict[str, Any]:
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "command": [sys.executable, *command],
        "directory": os.getcwd(),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "contents": dict(contents),
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
