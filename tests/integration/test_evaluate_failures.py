"""What evaluate.py refuses, and how its ranks end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluation.scoring import main
from kd.distributed import free_port
from tests.integration.evaluated import ROWS, arguments, contents, save_prompt, write_rows
from tests.integration.tiny_run import ROOT


@pytest.mark.usefixtures("alone")
def test_other_settings_in_the_same_directory_are_refused(
    model: Path, benchmark: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(arguments(model, benchmark, out)) == 0
    # Neither responses nor their meaning depend on these.
    assert main(arguments(model, benchmark, out, "--max-batch-tokens", "200", "--seeds", "10")) == 0
    before = contents(out)
    prompt = save_prompt(tmp_path / "soft_prompt.safetensors", width=32)
    changes = {
        "temperature=1.0": ["--temperature", "0.5"],
        "greedy=False": ["--greedy"],
        "rows=": ["--rows", "2"],
        "soft_prompt=None": ["--soft-prompt", str(prompt)],
        "dtype=fp32": ["--dtype", "bf16"],
    }
    for expected, extra in changes.items():
        capsys.readouterr()
        assert main(arguments(model, benchmark, out, *extra)) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert f"was made with {expected}" in message
        assert "use another --out or delete" in message
    # A model that was trained again is not scored with its old responses.
    (model / "model.safetensors").touch()
    assert main(arguments(model, benchmark, out)) == 2
    assert "was made with weights=" in capsys.readouterr().err
    assert contents(out) == before


@pytest.mark.usefixtures("alone")
def test_mistakes_are_one_line_and_exit_code_two(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:2])
    unanswered = write_rows(tmp_path / "unanswered.jsonl", [ROWS[0], {"instruction": "And now?"}])
    prompt = save_prompt(tmp_path / "soft_prompt.safetensors", width=16)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, no directory")
    out = tmp_path / "out"
    cases = [
        (arguments(tmp_path / "nowhere", rows, out), f"model {tmp_path / 'nowhere'}"),
        (arguments(model, tmp_path / "nowhere.jsonl", out), f"{tmp_path / 'nowhere.jsonl'}: cannot be read"),
        (arguments(model, rows, out, "--benchmark", "second"), "'second' is not NAME=PATH"),
        (arguments(model, unanswered, out), f"{unanswered}:2: expected `output`"),
        (arguments(model, rows, out, "--soft-prompt", str(prompt)), "16 numbers"),
        (arguments(model, rows, out, "--soft-prompt", str(rows)), f"soft prompt {rows}: cannot be read"),
        (arguments(model, rows, out, "--max-new-tokens", "64"), "has 128 positions"),
        (arguments(model, rows, out, "--dtype", "fp16"), "model.dtype=fp16 needs a GPU"),
        (arguments(model, rows, blocked), "cannot be written"),
    ]
    for argv, expected in cases:
        if "fp16" in argv and torch.cuda.is_available():
            continue
        capsys.readouterr()
        assert main(argv) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert expected in message
        assert message.count("\n") == 1
    assert contents(out) == {}


EVALUATE = (str(ROOT / "evaluation" / "evaluate.py"),)


def start_rank(
    rank: int, *, size: int, port: int, argv: list[str], program: tuple[str, ...] = EVALUATE
) -> "subprocess.Popen[str]":
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, *program, *argv]
    return subprocess.Popen(
        command, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_error_of_one_rank_ends_both(model: Path, benchmark: Path, tmp_path: Path) -> None:
    port = free_port()
    missing = tmp_path / "nowhere.jsonl"
    argvs = [arguments(model, rows, tmp_path / "out") for rows in (benchmark, missing)]
    processes = [start_rank(rank, size=2, port=port, argv=argv) for rank, argv in enumerate(argvs)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    errors = [line for _, error in outputs for line in error.splitlines() if not line.startswith(str(benchmark))]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {missing}: cannot be read")


def test_a_command_line_that_one_rank_cannot_follow_ends_both(tmp_path: Path) -> None:
    """The analyses read runs that their command lines name, which only some machines may have."""
    port = free_port()
    here, nowhere = tmp_path / "here", tmp_path / "nowhere"
    (here / "exports" / "step-1").mkdir(parents=True)
    (here / "metrics.jsonl").write_text('{"step": 1}\n')
    (here / "config.yaml").write_text("model: {student: s, teacher: t}\ndata: {train: d}\nrun: {dir: r}\n")
    fixed = ["--teacher", "t", "--data", "d", "--out", str(tmp_path / "out")]
    program = ("-m", "evaluation.analysis.exposure_bias")
    processes = [
        start_rank(rank, size=2, port=port, argv=[*fixed, "--run", f"a={run}"], program=program)
        for rank, run in enumerate((here, nowhere))
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "".join(error for _, error in outputs).startswith(f"error: {nowhere}: has no config.yaml")


def test_script_runs_from_anywhere_without_deepspeed(model: Path, benchmark: Path, tmp_path: Path) -> None:
    """The toolkit is found beside the script, and an import of DeepSpeed would raise."""
    (tmp_path / "hidden" / "deepspeed").mkdir(parents=True)
    broken = tmp_path / "hidden" / "deepspeed" / "__init__.py"
    broken.write_text("raise AssertionError('DeepSpeed was imported')\n")
    finished = subprocess.run(
        [
            sys.executable,
            str(ROOT / "evaluation" / "evaluate.py"),
            *arguments(model, benchmark, tmp_path / "out", "--rows", "2"),
        ],
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "MASTER_PORT")}
        | {"PYTHONPATH": str(tmp_path / "hidden"), "MASTER_PORT": str(free_port())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert len(contents(tmp_path / "out")) == 2
