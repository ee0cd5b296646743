"""What a user can get wrong ends in one line and exit code 2, on every rank."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from kd.cli import train
from kd.distributed import free_port
from tests.integration.tiny_run import ROOT, launch, launcher_environment, write_tiny_config, write_tiny_pair

SCRIPT = "launch/train_promptkd.py"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny_pair(tmp_path)
    return tmp_path


def assert_one_error(shown: str, *messages: str) -> None:
    assert "Traceback" not in shown
    [line] = [line for line in shown.splitlines() if line.startswith("error:")]
    for message in messages:
        assert message in line, line


def write_rows(directory: Path, rows: list[str]) -> None:
    (directory / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def row(number: int, **fields: Any) -> str:
    return json.dumps({"instruction": f"Name {number}.", "output": str(number)} | fields)


def missing_data_file(directory: Path) -> Path:
    (directory / "train.jsonl").unlink()
    return write_tiny_config(directory)


def broken_json(directory: Path) -> Path:
    write_rows(directory, [row(number) for number in range(6)] + ['{"instruction": "Name 7.'])
    return write_tiny_config(directory)


def empty_response(directory: Path) -> Path:
    write_rows(directory, [row(1), row(2, output="")])
    return write_tiny_config(directory)


def lost_column(directory: Path) -> Path:
    write_rows(directory, [row(1), row(2, history=[["Name 1.", "1"]])])
    return write_tiny_config(directory)


def repeated_section(directory: Path) -> Path:
    path = write_tiny_config(directory)
    path.write_text(path.read_text(encoding="utf-8") + "schedule: {steps: 1}\n", encoding="utf-8")
    return path


def torn_generation_config(directory: Path) -> Path:
    (directory / "teacher" / "generation_config.json").write_text('{"eos_token_id": ', encoding="utf-8")
    return write_tiny_config(directory)


def tokenizer_mismatch(directory: Path) -> Path:
    path = directory / "teacher" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    by_id = {index: token for token, index in vocabulary.items()}
    vocabulary[by_id[5]], vocabulary[by_id[6]] = 6, 5
    path.write_text(json.dumps(content), encoding="utf-8")
    Tokenizer.from_file(str(path))
    return write_tiny_config(directory)


def overlong_prompts(directory: Path) -> Path:
    return write_tiny_config(directory, data={"max_prompt_tokens": 3})


def batch_size_in_json(directory: Path) -> Path:
    path = directory / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, "train_batch_size": 8}), encoding="utf-8")
    return write_tiny_config(directory, engine={"student": str(path)})


def run_dir_below_a_file(directory: Path) -> Path:
    (directory / "file").touch()
    return write_tiny_config(directory, run={"dir": str(directory / "file" / "run")})


def run_dir_is_a_file(directory: Path) -> Path:
    (directory / "file").touch()
    return write_tiny_config(directory, run={"dir": str(directory / "file")})


def missing_teacher(directory: Path) -> Path:
    return write_tiny_config(directory, model={"teacher": str(directory / "nowhere")})


def teacher_without_config(directory: Path) -> Path:
    (directory / "empty").mkdir()
    return write_tiny_config(directory, model={"teacher": str(directory / "empty")})


def uneven_batch(directory: Path) -> Path:
    return write_tiny_config(directory, schedule={"global_batch": 5, "micro_batch": 2})


def flash_attention_without_its_package(directory: Path) -> Path:
    return write_tiny_config(directory, model={"attention": "flash_attention_2"})


BAD_INPUTS = (
    (missing_data_file, ["train.jsonl", "cannot be read"]),
    (broken_json, ["train.jsonl:7", "JSON"]),
    (empty_response, ["train.jsonl:2", "`output` is empty"]),
    (lost_column, ["train.jsonl:2", "`history`", "data.columns='{prompt: instruction, response: output}'"]),
    (repeated_section, ["config.yaml", "`schedule` more than once"]),
    (torn_generation_config, ["teacher", "generation_config.json is not valid JSON"]),
    (tokenizer_mismatch, ["tokenizers of teacher and student differ", "entry 5"]),
    (overlong_prompts, ["all 8 prompts are longer than data.max_prompt_tokens=3"]),
    (batch_size_in_json, ["zero.json", "train_batch_size", "schedule.global_batch"]),
    (run_dir_below_a_file, ["run.dir", "cannot be written"]),
    (run_dir_is_a_file, ["run.dir", "cannot be written"]),
    (missing_teacher, ["nowhere", "no such directory"]),
    (teacher_without_config, ["empty", "config.json"]),
    (flash_attention_without_its_package, ["student", "a package is missing", "or set model.attention=sdpa"]),
    (uneven_batch, ["schedule.global_batch=5", "schedule.micro_batch=2"]),
)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("spoil", "messages"), BAD_INPUTS, ids=[spoil.__name__ for spoil, _ in BAD_INPUTS])
def test_bad_input_is_one_line(spoil: Any, messages: list[str], tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if spoil is flash_attention_without_its_package and importlib.util.find_spec("flash_attn") is not None:
        pytest.skip("flash attention is installed")
    config = spoil(tiny)
    capsys.readouterr()
    assert train(["--config", str(config)]) == 2
    assert_one_error(capsys.readouterr().err, *messages)


@pytest.mark.usefixtures("alone")
def test_attention_of_a_config_json_that_is_not_installed_is_ignored(tiny: Path) -> None:
    for name in ("teacher", "student"):
        path = tiny / name / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "flash_attention_2"}))
    assert train(["--config", str(write_tiny_config(tiny))]) == 0


@pytest.mark.usefixtures("alone")
def test_a_missing_configuration_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(["--config", str(tmp_path / "none.yaml")]) == 2
    assert_one_error(capsys.readouterr().err, "none.yaml", "cannot be read")


def test_a_script_of_its_own_prints_one_line_and_nothing_else(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path, schedule={"step": 3})
    finished = launch([sys.executable, SCRIPT, "--config", str(config)])
    assert finished.returncode == 2
    assert finished.stdout == ""
    [line] = finished.stderr.splitlines()
    assert_one_error(line, "unknown key schedule.step", "did you mean schedule.steps?")


def test_two_ranks_end_together_when_one_of_them_fails(tiny: Path) -> None:
    # Only the main rank writes into run.dir, so it alone meets the error.
    config = run_dir_is_a_file(tiny)
    finished = launch(
        ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), SCRIPT, "--config", str(config)]
    )
    assert finished.returncode == 2
    assert_one_error(finished.stderr, "run.dir", "cannot be written")


def test_ranks_leave_within_half_a_minute_of_the_message(tiny: Path) -> None:
    config = tokenizer_mismatch(tiny)
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, "--config", str(config)],
            cwd=ROOT,
            env=launcher_environment()
            | {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for port in [str(free_port())]
        for rank in ("0", "1")
    ]
    try:
        shown = ranks[0].communicate(timeout=120)[1]
        assert_one_error(shown, "tokenizers of teacher and student differ")
        # Without a launcher that would kill it: the other rank leaves by itself.
        assert ranks[1].communicate(timeout=30)[1] == ""
        assert [process.returncode for process in ranks] == [2, 2]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
