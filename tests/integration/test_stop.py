"""Runs that are told to stop, or whose launcher is killed: the state is saved, and nothing is left behind."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from kd.train.metric_log import read_metrics
from tests.distributed import run_jobs
from tests.integration.test_launchers import command
from tests.integration.tiny_run import ROOT, launch, launcher_environment, write_tiny_config, write_tiny_pair

NUM_STEPS = 60


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stop")
    write_tiny_pair(directory)
    return write_tiny_config(directory, schedule={"steps": NUM_STEPS}, checkpoints={"every": 1000})


@pytest.fixture(scope="module")
def straight(config: Path, ranks: Any) -> dict[str, torch.Tensor]:
    """The student of a run without interruption."""
    directory = config.parent / "straight"
    assert ranks(2).run(run_jobs.run, config_file=config, overrides=[f"run.dir={directory}"]) == [None, None]
    return load_file(directory / "final" / "model.safetensors")


def start(config: Path, run_dir: Path) -> tuple["subprocess.Popen[bytes]", list[psutil.Process]]:
    """A run that has finished a few steps, and all of its processes."""
    arguments = [*command("deepspeed", directory=run_dir.parent), "--config", str(config), f"run.dir={run_dir}"]
    with (run_dir.parent / "output").open("wb") as output:
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=launcher_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline, (run_dir.parent / "output").read_text()
        time.sleep(0.02)
    return process, [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def test_a_run_whose_launcher_is_stopped_saves_its_state_and_resumes(
    config: Path, straight: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """SIGTERM ends the command `deepspeed` at once; its ranks notice."""
    run_dir = tmp_path / "run"
    process, family = start(config, run_dir)
    process.terminate()
    code = process.wait(timeout=60)
    _, left = psutil.wait_procs(family, timeout=30)
    output = (tmp_path / "output").read_text()
    assert not left, output
    assert "stopped after step" in (run_dir / "log.txt").read_text(), output
    assert code == -signal.SIGTERM
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert 3 <= json.loads((checkpoint / "manifest.json").read_text())["facts"]["state"]["step"] < NUM_STEPS
    assert not (run_dir / "run.lock").exists()

    finished = launch([*command("deepspeed", directory=tmp_path), "--config", str(config), f"run.dir={run_dir}"])
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert [record["step"] for record in read_metrics(run_dir)] == list(range(1, NUM_STEPS + 1))
    student = load_file(run_dir / "final" / "model.safetensors")
    for name, value in straight.items():
        assert torch.equal(student[name], value), name


def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path: Path) -> None:
    """A limit of file sizes stands for the disk: torch's writer and the others fail alike."""
    write_tiny_pair(tmp_path)
    config = write_tiny_config(tmp_path, checkpoints={"every": 1})
    train = f"promptkd train --config {config}"
    full = launch(["bash", "-c", f"ulimit -f 48; exec {train}"])
    assert full.returncode == 2, full.stderr
    (line,) = full.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / 'run' / 'checkpoints' / 'step-1.partial'}: cannot be written (")
    assert line.endswith("make room, then start the same command: it resumes from the latest complete checkpoint")
    finished = launch(["bash", "-c", train])
    assert finished.returncode == 0, finished.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))
