"""A run that ends abruptly at a file operation in its directory goes on, and ends as one that did not.

CRASH_POINTS=all tries every operation, which takes minutes; the suite tries some of them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd.distributed import free_port, start_world
from kd.methods import load_config
from kd.train.assemble import run_on
from kd.train.check import check_run
from kd.train.metric_log import read_metrics
from tests.distributed.harness import write_config
from tests.run_on_ranks import forked_ranks
from tests.tiny_models import save_tiny_model

NUM_STEPS = 3
CRASHED = 9
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.utime", "os.truncate"}
"""Python's names of what changes a directory; it calls os.replace a rename, and os.unlink a removal."""


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("crashes")
    for name in ("teacher", "student"):
        save_tiny_model(directory / name, "gpt2", seed=1)
    rows = [{"instruction": f"Repeat the word number {i}.", "output": f"word {i}"} for i in range(10)]
    for name, part in (("train", rows[:6]), ("validation", rows[6:])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    path = write_config(directory, stage=0, teacher_stage=0)
    values = yaml.safe_load(path.read_text())
    values["data"] |= {
        "train": str(directory / "train.jsonl"),
        "validation": str(directory / "validation.jsonl"),
        "max_prompt_tokens": 100,
        "max_sequence_tokens": 116,
    }
    values["schedule"] |= {"steps": NUM_STEPS, "global_batch": 2}
    values["validation"] = {"every": 1, "rows": 2, "generate": False}
    values["checkpoints"] = {"every": 1, "keep": 1, "export_every": 2}
    values["run"] |= {"tensorboard": False}
    path.write_text(yaml.safe_dump(values))
    return path


def train(config_file: Path, run_dir: Path, crash_at: int, counter: Path | None) -> None:
    """One rank that ends at its `crash_at`th change of `run_dir`, or writes the number of changes to `counter`."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    changes = 0

    def count(event: str, arguments: Any) -> None:
        nonlocal changes
        writes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES)
        if writes and isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(str(run_dir)):
            changes += 1
            if changes == crash_at:
                os._exit(CRASHED)

    torch.set_num_threads(1)
    world = start_world()
    sys.addaudithook(count)
    run_on(world, load_config(config_file, overrides=[f"run.dir={run_dir}"]), command=["train.py"])
    if counter is not None:
        counter.write_text(str(changes))
    os._exit(0)


def run(config_file: Path, run_dir: Path, *, crash_at: int = 0, counter: Path | None = None) -> int | None:
    process = forked_ranks().Process(target=train, args=(config_file, run_dir, crash_at, counter))
    process.start()
    process.join(timeout=120)
    process.kill()
    return process.exitcode


@pytest.mark.timeout(3600)
def test_every_crash_is_made_good_by_the_next_start(setting: Path, tmp_path: Path) -> None:
    straight, counter = tmp_path / "straight", tmp_path / "changes"
    assert run(setting, straight, counter=counter) == 0
    num_changes = int(counter.read_text())
    # Three checkpoints, an export, the best and the last student.
    assert num_changes > 60
    expected = load_file(straight / "final" / "model.safetensors")
    points = os.environ.get("CRASH_POINTS", "4")
    stride = 1 if points == "all" else num_changes // int(points)
    for point in range(1, num_changes + 1, stride):
        run_dir = tmp_path / f"crash-{point}"
        assert run(setting, run_dir, crash_at=point) == CRASHED, point
        assert run(setting, run_dir) == 0, point
        assert check_run(run_dir), point
        assert [record["step"] for record in read_metrics(run_dir)] == list(range(1, NUM_STEPS + 1)), point
        student = load_file(run_dir / "final" / "model.safetensors")
        assert all(torch.equal(student[name], value) for name, value in expected.items()), point
        names = {path.name for path in run_dir.iterdir() if path.is_dir()}
        assert names == {"checkpoints", "best", "final", "exports"}, point
