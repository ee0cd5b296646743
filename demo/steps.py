"""Steps of the demo: commands of the toolkit, printed before they run."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from demo.plan import SEEDS
from kd.distributed import free_port

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
DEEPSPEED = str(Path(PYTHON).with_name("deepspeed"))


def show(command: list[str]) -> str:
    """A command as it is typed in the project's folder."""
    names = {PYTHON: "python", DEEPSPEED: "deepspeed"}
    return shlex.join(names.get(word, word) for word in command)


def run(title: str, *commands: list[str]) -> None:
    """Print and run commands, several of them in parallel; exit if one fails."""
    print(f"\n== {title}", flush=True)
    for command in commands:
        print(f"$ {show(command)}", flush=True)
    started = time.monotonic()
    # Two ranks cannot share the GPU of a workstation, and the models are tiny.
    accelerator = os.environ.get("DS_ACCELERATOR", "cpu")
    # One thread per process: two processes share two cores.
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = os.environ | threads | {"DS_ACCELERATOR": accelerator}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit(f"this step failed (exit codes {codes}); run its command again for details")
    print(f"   {time.monotonic() - started:.0f} s", flush=True)


def on_two_ranks(script: str, *arguments: str) -> list[str]:
    """Command that runs a script of the toolkit on two ranks."""
    # A free port: another run on this machine may use the default one.
    return [DEEPSPEED, "--num_gpus", "2", "--master_port", str(free_port()), script, *arguments]


def train(config: str, *overrides: str) -> list[str]:
    """Command that trains on two ranks."""
    script = "launch/train_promptkd.py" if config == "promptkd" else "launch/train.py"
    return on_two_ranks(script, "--config", f"demo/{config}.yaml", *overrides)


def evaluate(model: str, *, out: str) -> list[str]:
    """Command that scores a model on the test rows with five seeds."""
    return [
        PYTHON,
        "evaluation/evaluate.py",
        "--model",
        model,
        "--benchmark",
        "test=demo/data/test.jsonl",
        "--seeds",
        SEEDS,
        "--max-new-tokens",
        "16",
        "--out",
        out,
    ]


def evaluate_all(models: Mapping[str, str]) -> None:
    """Score models, two at a time; `models` maps the directory for the scores to the model's directory."""
    commands = [evaluate(model, out=out) for out, model in models.items()]
    for first in range(0, len(commands), 2):
        run("Score on the 360 test rows, five seeds", *commands[first : first + 2])


def make_student(out: str, *, seed: int = 1) -> None:
    """Make the demo's student with random weights, unless `out` exists."""
    if Path(out).exists():
        return
    shape = ["--layers", "2", "--hidden", "128", "--heads", "4"]
    where = ["--seed", str(seed), "--out", out]
    run(
        "A small student with random weights",
        [PYTHON, "-m", "demo.make_model", "--tokenizer", "demo/teacher", *shape, *where],
    )
