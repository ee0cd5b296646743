"""The installed wheel works without a checkout: its console script, its presets, and the demo's first step."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from demo.make_model import make_model
from kd.distributed import free_port
from tests.integration.tiny_run import ROOT, launcher_environment

SOURCES = ("kd", "evaluation", "ds_configs", "launch", "setup.py", "pyproject.toml")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new environment with the wheel, and beside it what this environment has but the toolkit."""
    directory = tmp_path_factory.mktemp("installed")
    # A copy: setuptools builds inside the source tree, and would package what an earlier build left there.
    source = directory / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    # An editable install on PYTHONPATH would count as installed.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [
        *pip,
        "wheel",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(directory),
        str(source),
    ]
    subprocess.run(build, env=environment, check=True)
    shutil.rmtree(source)
    venv.create(directory / "environment", with_pip=False)
    programs = directory / "environment" / "bin"
    [wheel] = directory.glob("promptkd-*.whl")
    install = ["--python", str(programs / "python"), "install", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([*pip, *install], env=environment, check=True)
    # Python does not process the .pth files of a folder that a .pth file names, such as that of an editable install.
    [site_packages] = (directory / "environment").glob("lib/python*/site-packages")
    (site_packages / "tested.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return programs


def run(programs: Path, folder: Path, *command: str) -> str:
    environment = launcher_environment()
    del environment["PYTHONPATH"]
    environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_toolkit_is_the_installed_one(installed: Path, tmp_path: Path) -> None:
    absent = "('evaluation.bench', 'evaluation.paper')"
    code = f"import importlib.util as util, kd; print(kd.__file__, *map(util.find_spec, {absent}))"
    file, *specs = run(installed, tmp_path, "python", "-c", code).split()
    assert Path(file).is_relative_to(installed.parent)
    assert specs == ["None", "None"]


@pytest.mark.parametrize("command", ["train", "generate", "evaluate", "compare", "report", "make-student"])
def test_every_command_is_there(command: str, installed: Path, tmp_path: Path) -> None:
    assert command in run(installed, tmp_path, "promptkd", "--help")
    assert run(installed, tmp_path, "promptkd", command, "--help").startswith("usage: ")


def test_presets_are_listed_and_extend_each_other(installed: Path, tmp_path: Path) -> None:
    assert "opt/promptkd_1.3b.yaml" in run(installed, tmp_path, "promptkd", "train", "--list-presets")
    shown = run(installed, tmp_path, "promptkd", "train", "--config", "opt/promptkd_1.3b.yaml", "--print-config")
    assert "train: data/dolly/train.jsonl" in shown


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_demo_begins_in_an_empty_folder(num_ranks: int, installed: Path, tmp_path: Path) -> None:
    """A student with random weights, fine-tuned for one step with the packaged ZeRO-3 settings."""
    demo = tmp_path / "demo"
    shutil.copytree(ROOT / "demo" / "data", demo / "data")
    shutil.copy(ROOT / "demo" / "student_sft.yaml", demo)
    make_model(ROOT / "demo" / "teacher", layers=1, hidden=32, heads=2, seed=1, out=demo / "runs" / "student-start")
    torchrun = ["python", "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    program = ["promptkd"] if num_ranks == 1 else [*torchrun, "-m", "kd"]
    overrides = ["engine.student=ds_configs/zero3.json", "schedule.steps=1", "schedule.warmup_steps=0"]
    run(installed, tmp_path, *program, "train", "--config", "demo/student_sft.yaml", *overrides)
    run_dir = demo / "runs" / "student"
    assert (run_dir / "final" / "model.safetensors").is_file()
    [metrics] = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(metrics)["step"] == 1
    assert json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["num_ranks"] == num_ranks
