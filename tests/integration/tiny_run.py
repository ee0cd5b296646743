"""A run of two steps of tiny models, as files that any launcher can be pointed at."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.tiny_models import save_tiny_model

ROOT = Path(__file__).parents[2]
NUM_STEPS = 2


def write_tiny_pair(directory: Path) -> None:
    """A teacher, a student and eight rows in `directory`."""
    save_tiny_model(directory / "teacher", "llama", seed=1, width=16, layers=2)
    save_tiny_model(directory / "student", "llama", seed=2, width=16, layers=1)
    rows = [{"instruction": f"Name {number}.", "output": str(number)} for number in range(8)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_tiny_config(directory: Path, **sections: Any) -> Path:
    """A PromptKD run of the pair in `directory`, changed by `sections`; returns the YAML file."""
    values: dict[str, Any] = {
        "method": "promptkd",
        "model": {"teacher": str(directory / "teacher"), "student": str(directory / "student"), "dtype": "fp32"},
        "data": {"train": str(directory / "train.jsonl"), "max_prompt_tokens": 100, "max_sequence_tokens": 108},
        "generation": {"layout": "gathered", "max_new_tokens": 8},
        "schedule": {"steps": NUM_STEPS, "warmup_steps": 0, "global_batch": 2, "micro_batch": 1},
        "run": {"dir": str(directory / "run"), "tensorboard": False},
    }
    for name, section in sections.items():
        if isinstance(section, dict):
            values[name] = values.get(name, {}) | section
        else:
            values[name] = section
    path = directory / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def launcher_environment() -> dict[str, str]:
    """This process's environment without ranks, with the project and its interpreter in front."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMPI_", "PMIX_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    return env | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def launch(command: list[str], *, timeout: float = 180, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a launcher from the project's folder; its output is text. Nothing of it is left after `timeout` seconds."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=launcher_environment() | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A group of its own: killing the launcher alone would leave its ranks behind.
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def assert_trained(directory: Path, *, num_ranks: int) -> None:
    """The run wrote one line for each step and its student, on as many ranks as it should."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, NUM_STEPS + 1))
    assert (directory / "final" / "model.safetensors").is_file()
    assert (directory / "final" / "soft_prompt.safetensors").is_file()
    assert json.loads((directory / "environment.json").read_text(encoding="utf-8"))["num_ranks"] == num_ranks
