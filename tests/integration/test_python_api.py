"""The example of docs/python_api.md runs as written; errors leave the process usable."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.tiny_run import ROOT, assert_trained, launcher_environment, write_tiny_config, write_tiny_pair

PAGE = ROOT / "docs" / "python_api.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files by the names of the example."""
    write_tiny_pair(tmp_path)
    write_tiny_config(tmp_path).rename(tmp_path / "my_run.yaml")
    (tmp_path / "data").mkdir()
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "data" / "my-test.jsonl")
    return tmp_path


def run_script(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=launcher_environment(), capture_output=True, text=True
    )


def test_the_example_trains_and_evaluates(folder: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    finished = run_script(example, folder)
    assert finished.returncode == 0, finished.stderr
    run_dir = folder / "runs" / "my-student"
    assert_trained(run_dir, num_ranks=1)
    results = json.loads((run_dir / "evaluation" / "results.json").read_text(encoding="utf-8"))
    assert results["seeds"] == [10, 20]
    assert finished.stdout.splitlines()[-1] == str(results["benchmarks"]["mine"]["rougeL"]["mean"])


def test_a_process_trains_again_after_an_error_and_after_a_run(folder: Path) -> None:
    """The names stay functions, although `kd.train` is a package and `evaluate.py` a module."""
    script = """
import kd, kd.train.assemble, evaluation.scoring, evaluation.compare
from evaluation import evaluate
from kd import UserError, load_config, train

for override in ("data.train=nowhere.jsonl", "run.dir=first", "run.dir=second"):
    try:
        print(train(load_config("my_run.yaml", overrides=[override])))
    except UserError as error:
        print("refused:", error)
try:
    evaluate("first/final", benchmarks={"mine": "data/my-test.jsonl"}, out="scores", overrides=["generation.seeds=x"])
except UserError as error:
    print("refused:", error)
"""
    finished = run_script(script, folder)
    assert finished.returncode == 0, finished.stderr
    shown = [line for line in finished.stdout.splitlines() if re.fullmatch(r"refused: .*|first|second", line)]
    assert [line.split()[0] for line in shown] == ["refused:", "first", "second", "refused:"]
    first, second = (folder / name / "final" / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
