"""The console script and its scripts: what they run, refuse and print, and how light they are."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import kd
from kd.cli import COMMANDS, main, train
from kd.config.load import describe_fields
from kd.config.packaged import find_ds_config, list_presets
from kd.methods import METHODS, config_type, load_config

ROOT = Path(__file__).parents[2]
OVERRIDES = ["model.student=s", "model.teacher=t", "data.train=rows.jsonl", "run.dir=runs/x"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("{schedule: {steps: 700}}\n", encoding="utf-8")
    return path


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def printed_config(capsys: pytest.CaptureFixture[str], *argv: str) -> object:
    assert main(["train", "--print-config", *argv]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "statement",
    [
        "import kd, kd.cli, evaluation",
        "main(['--help'])",
        "main(['train', '--list-presets'])",
        "main(['generate', '-h'])",
    ],
)
def test_what_needs_no_model_imports_neither_torch_nor_pydantic(statement: str) -> None:
    code = f"""
import sys
from kd.cli import main
try:
    {statement}
except SystemExit as ended:
    assert ended.code == 0
assert not {{"torch", "transformers", "deepspeed", "pydantic"}} & sys.modules.keys()
"""
    finished = run_python("-c", code)
    assert finished.returncode == 0, finished.stderr


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown and text in shown for name, (_, text) in COMMANDS.items())
    assert main([]) == 2
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trian", "--config", "run.yaml"])
    assert ended.value.code == 2
    assert "'trian'" in capsys.readouterr().err


def test_help_of_train_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(["--help"])
    shown = capsys.readouterr().out
    for name, default, meaning in describe_fields(config_type(METHODS["promptkd"])):
        assert f"{name} " in shown
        assert f"{meaning} [{default}]" in shown


def test_print_config_prints_what_would_run(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*OVERRIDES, "optimizer.learning_rate=1e-3"]
    shown = printed_config(capsys, "--config", str(file), *overrides)
    assert shown == asdict(load_config(file, overrides=overrides))


def test_the_launchers_rank_is_accepted_before_and_after_the_command(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `deepspeed --module kd train …` and `deepspeed launch/train.py …` pass it."""
    assert main(["--local_rank=1", "train", "--print-config", "--config", str(file), *OVERRIDES]) == 0
    assert train(["--local_rank=1", "--print-config", "--config", str(file), *OVERRIDES]) == 0
    first, second = capsys.readouterr().out.split("method: ")[1:]
    assert first == second


@pytest.mark.parametrize("script", ["train", "train_promptkd", "generate", "make_student"])
def test_a_script_is_a_command(script: str) -> None:
    finished = run_python(f"launch/{script}.py", "--help")
    command = script.removesuffix("_promptkd").replace("_", "-")
    assert finished.stdout.startswith(f"usage: promptkd {command} "), finished.stderr
    assert len((ROOT / "launch" / f"{script}.py").read_text(encoding="utf-8").splitlines()) <= 8


def test_the_promptkd_script_refuses_other_methods(file: Path) -> None:
    finished = run_python("launch/train_promptkd.py", "--config", str(file), *OVERRIDES, "method=kd")
    assert finished.returncode == 2
    [line] = finished.stderr.splitlines()
    assert line == "error: method is kd, but this script runs promptkd only; use launch/train.py"


def test_presets_are_found_by_name_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = asdict(load_config(ROOT / "launch" / "experiments" / "opt" / "promptkd_1.3b.yaml"))
    monkeypatch.chdir(tmp_path)
    for name in ("opt/promptkd_1.3b.yaml", "launch/experiments/opt/promptkd_1.3b.yaml"):
        assert printed_config(capsys, "--config", name) == expected
    # A file of the user's wins over a preset of its name.
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "promptkd_1.3b.yaml").write_text("{schedule: {steps: 700}}\n", encoding="utf-8")
    assert kd.load_config("opt/promptkd_1.3b.yaml", overrides=OVERRIDES).schedule.steps == 700


def test_a_name_of_neither_a_file_nor_a_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--config", "opt/promptkd_99b.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --config opt/promptkd_99b.yaml: cannot be read (no such file or preset)")


def test_listed_presets_are_runs_and_have_a_description() -> None:
    presets = dict(list_presets())
    assert {"opt/promptkd_1.3b.yaml", "gpt2/ablations/lora_4_32.yaml", "your_own/promptkd.yaml"} <= presets.keys()
    assert presets["gpt2/ablations/without_regularization_base.yaml"] == "Table 11: PromptKD without L_reg."
    for name in presets:
        kd.load_config(name)


def test_a_deepspeed_json_beside_the_run_wins_over_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = (ROOT / "ds_configs" / "zero3.json").read_text(encoding="utf-8")
    assert find_ds_config("ds_configs/zero3.json").read_text(encoding="utf-8") == packaged
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero3.json").write_text("{}", encoding="utf-8")
    assert find_ds_config("ds_configs/zero3.json").read_text(encoding="utf-8") == "{}"
