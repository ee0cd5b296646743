"""Whole runs on two ranks: the run directory's contract, resume, and what may not be resumed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd.cli import main
from kd.methods import load_config
from kd.models.soft_prompt import load_soft_prompt
from kd.train.check import check_run
from kd.train.metric_log import read_metrics
from tests.distributed import run_jobs as jobs
from tests.distributed.harness import write_config
from tests.tiny_models import save_tiny_model

NUM_STEPS = 6
OTHER_END = 7
METRICS = {
    "step",
    "epoch",
    "student_kd",
    "prompt_kd",
    "prompt_regularization",
    "regularization_weight",
    "response_tokens",
    "mean_response_length",
    "learning_rate",
    "prompt_learning_rate",
    "grad_norm",
    "prompt_grad_norm",
    "generation_seconds",
    "teacher_seconds",
    "optimizer_seconds",
    "prompt_seconds",
    "student_seconds",
    "step_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
}
# What a rerun measures anew.
TIMES = {name for name in METRICS if "second" in name} | {"peak_memory_bytes"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of models with dropout, data and a configuration."""
    directory = tmp_path_factory.mktemp("run")
    save_tiny_model(directory / "teacher", "gpt2", seed=1, width=48, layers=3)
    student = save_tiny_model(directory / "student", "gpt2", seed=2)
    generation = json.loads((student / "generation_config.json").read_text())
    ends = generation | {"eos_token_id": [generation["eos_token_id"], OTHER_END]}
    (student / "generation_config.json").write_text(json.dumps(ends))
    rows = [{"instruction": f"Repeat the word number {i}.", "output": f"word {i}"} for i in range(30)]
    for name, part in (("train", rows[:20]), ("validation", rows[20:])):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    path = write_config(directory)
    values = yaml.safe_load(path.read_text())
    values["model"]["student_dropout"] = True
    values["data"] |= {
        "train": str(directory / "train.jsonl"),
        "validation": str(directory / "validation.jsonl"),
        "max_prompt_tokens": 100,
        "max_sequence_tokens": 116,
    }
    values["optimizer"] |= {"name": "adamw", "learning_rate": 1.0e-3}
    values["prompt"] |= {"learning_rate": 1.0e-3}
    values["schedule"] |= {"steps": NUM_STEPS, "micro_batch": 1}
    values["validation"] = {"every": 3, "rows": 5}
    values["checkpoints"] = {"every": 2, "keep": 2}
    values["run"] = {"dir": str(directory / "straight")}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def straight(setting: Path, ranks: Any) -> Path:
    """A run without interruption."""
    assert ranks(2).run(jobs.run, config_file=setting, overrides=[]) == [None, None]
    return setting.parent / "straight"


def test_the_run_directory_keeps_its_contract(straight: Path) -> None:
    records = read_metrics(straight)
    assert [record["step"] for record in records] == list(range(1, NUM_STEPS + 1))
    for record in records:
        validated = record["step"] % 3 == 0
        expected = METRICS | ({"validation/loss", "validation/rougeL"} if validated else set())
        if record["regularization_weight"] == 0:
            expected -= {"prompt_regularization"}
        assert set(record) == expected
    assert [record["regularization_weight"] for record in records] == [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]
    assert {path.name for path in (straight / "checkpoints").iterdir()} == {"step-4", "step-6"}
    resolved = load_config(straight / "config.yaml")
    assert resolved.schedule.steps == NUM_STEPS
    environment = json.loads((straight / "environment.json").read_text())
    assert {"command", "git_revision", "packages", "devices", "num_ranks"} <= set(environment)
    assert f"step {NUM_STEPS}/{NUM_STEPS}" in (straight / "log.txt").read_text()
    for name in ("best", "final"):
        files = {path.name for path in (straight / name).iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "soft_prompt.safetensors"} <= files
        assert "tokenizer.json" in files
        generation = json.loads((straight / name / "generation_config.json").read_text())
        assert generation["eos_token_id"][1:] == [OTHER_END]
    assert "responses of the data end in" in (straight / "log.txt").read_text()
    _, origin = load_soft_prompt(straight / "final" / "soft_prompt.safetensors")
    assert origin.init == "text" and origin.teacher.endswith("teacher")


def test_the_curves_are_in_tensorboard_too(straight: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(straight / "tensorboard"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("student_kd")]
    records = [(record["step"], pytest.approx(record["student_kd"], rel=1e-5)) for record in read_metrics(straight)]
    assert points == records


def test_the_student_loads_without_this_project(straight: Path, setting: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "directory = sys.argv[1]\n"
        "tokenizer = AutoTokenizer.from_pretrained(directory)\n"
        "model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)\n"
        "assert not info['missing_keys'] and not info['unexpected_keys'], info\n"
        "assert 'kd' not in sys.modules\n"
        "assert model.config.resid_pdrop == 0.1, 'the published dropout must come back'\n"
        "ids = tokenizer('Repeat the word', return_tensors='pt')\n"
        "print(model.generate(**ids, max_new_tokens=4, do_sample=False).shape[1])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for published in (False, True):
        # Trained with dropout and without, the saved configuration is the published one.
        directory = straight / "final" if published else straight / "best"
        result = subprocess.run(
            [sys.executable, "-c", script, str(directory)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr[-1500:]


def assert_same_student(run: Path, other: Path) -> None:
    for name in ("model.safetensors", "soft_prompt.safetensors"):
        ours, theirs = load_file(run / "final" / name), load_file(other / "final" / name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), key


def test_interrupted_runs_resume_bit_exactly(straight: Path, setting: Path, ranks: Any) -> None:
    """Stopped after steps 1 and 2 by the clock, then run to the end."""
    directory = setting.parent / "stopped"
    for stop in ("1.0e-9", "1.0e-9", "null"):
        overrides = [f"run.dir={directory}", f"run.max_hours={stop}"]
        reason = None if stop == "null" else "run.max_hours=1e-09 have passed"
        assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [reason] * 2
    assert "resuming after step 2" in (directory / "log.txt").read_text()
    for ours, theirs in zip(read_metrics(directory), read_metrics(straight), strict=True):
        assert {k: v for k, v in ours.items() if k not in TIMES} == {k: v for k, v in theirs.items() if k not in TIMES}
    assert_same_student(directory, straight)


def test_a_finished_run_is_left_alone(straight: Path, setting: Path, ranks: Any) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    assert ranks(2).run(jobs.run, config_file=setting, overrides=[]) == [None, None]
    assert (straight / "metrics.jsonl").read_bytes() == before
    assert "all 6 steps are done" in (straight / "log.txt").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.resume=never"], "holds a run already"),
        (
            ["optimizer.learning_rate=2.0e-3"],
            "optimizer.learning_rate=0.001, now it is 0.002; restore it to resume, set run.resume=changed, or choose",
        ),
        (["run.seed=1"], "was started with run.seed=42, now it is 1"),
    ],
)
def test_another_run_is_refused_in_the_same_directory(
    straight: Path, setting: Path, ranks: Any, overrides: list[str], message: str
) -> None:
    before = (straight / "config.yaml").read_bytes()
    for answer in ranks(2).run(jobs.run, config_file=setting, overrides=overrides):
        assert message in answer
    assert (straight / "config.yaml").read_bytes() == before


def unfinished(straight: Path, copy: Path) -> Path:
    """A copy of a run as it was before its last export."""
    shutil.copytree(straight, copy)
    shutil.rmtree(copy / "final")
    return copy


def test_another_number_of_ranks_is_refused(straight: Path, setting: Path, ranks: Any, tmp_path: Path) -> None:
    directory = unfinished(straight, tmp_path / "run")
    (answer,) = ranks(1).run(jobs.run, config_file=setting, overrides=[f"run.dir={directory}"])
    assert "was written with num_ranks=2, zero_stage=3; now num_ranks=1, zero_stage=3" in answer


def test_a_finished_run_without_checkpoints_is_left_alone(
    straight: Path, setting: Path, ranks: Any, tmp_path: Path
) -> None:
    directory = shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints")
    before = (directory / "final" / "model.safetensors").stat().st_mtime_ns
    overrides = [f"run.dir={directory}"]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    for answer in ranks(2).run(jobs.run, config_file=setting, overrides=[*overrides, "prompt.length=3"]):
        assert "was started with prompt.length=5, now it is 3" in answer
    assert (directory / "final" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["optimizer of another rank", "older optimizer", "flipped bit", "no manifest"])
def test_a_damaged_checkpoint_is_set_aside(
    straight: Path, setting: Path, ranks: Any, tmp_path: Path, damage: str
) -> None:
    """The run resumes from the one before it, and ends as if nothing had happened."""
    directory = unfinished(straight, tmp_path / "run")
    checkpoint = directory / "checkpoints" / "step-6"
    own, other = sorted((checkpoint / "student" / "state").glob("*_optim_states.pt"))
    if damage == "optimizer of another rank":
        content = own.read_bytes()
        own.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif damage == "older optimizer":
        shutil.copy(directory / "checkpoints" / "step-4" / own.relative_to(checkpoint), own)
    elif damage == "flipped bit":
        path = checkpoint / "random-1.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        (checkpoint / "manifest.json").unlink()
    assert ranks(2).run(jobs.run, config_file=setting, overrides=[f"run.dir={directory}"]) == [None, None]
    log = (directory / "log.txt").read_text()
    assert f"{checkpoint} is damaged: " in log and "resuming after step 4 of 6" in log
    assert_same_student(directory, straight)
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {"step-4", "step-6", "step-6.damaged"}


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(
    straight: Path, setting: Path, ranks: Any, tmp_path: Path
) -> None:
    directory = unfinished(straight, tmp_path / "run")
    for step in (4, 6):
        (directory / "checkpoints" / f"step-{step}" / "method-0.pt").write_bytes(b"")
    before = (directory / "metrics.jsonl").read_bytes()
    for answer in ranks(2).run(jobs.run, config_file=setting, overrides=[f"run.dir={directory}"]):
        assert "no checkpoint is whole; restore one from a copy, or remove the directory" in answer
    assert (directory / "metrics.jsonl").read_bytes() == before


def test_the_best_student_is_chosen_anew_if_it_is_damaged(
    straight: Path, setting: Path, ranks: Any, tmp_path: Path
) -> None:
    directory = unfinished(straight, tmp_path / "run")
    shutil.rmtree(directory / "checkpoints" / "step-6")
    (directory / "best" / "config.json").write_text("{}")
    assert not check_run(directory)
    assert ranks(2).run(jobs.run, config_file=setting, overrides=[f"run.dir={directory}"]) == [None, None]
    assert f"{directory / 'best'} is damaged or missing: the next validation" in (directory / "log.txt").read_text()
    assert check_run(directory)
    assert_same_student(directory, straight)


def test_check_names_what_is_damaged(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = Path(shutil.copytree(straight, tmp_path / "run"))
    (directory / "checkpoints" / "step-9.partial").mkdir()
    (directory / "final" / "model.safetensors").unlink()
    assert main(["check", str(straight)]) == 0
    whole = capsys.readouterr().out
    assert [line.split()[:2] for line in whole.splitlines()] == [
        [name, "whole"] for name in ("checkpoints/step-4", "checkpoints/step-6", "best", "final")
    ]
    assert main(["check", str(straight), str(directory)]) == 1
    lines = capsys.readouterr().out.removeprefix(whole).splitlines()
    assert lines[2].split(maxsplit=2)[1:] == ["partial", "its write was interrupted; the next start removes it"]
    assert lines[-1].split(maxsplit=2) == ["final", "damaged", "model.safetensors is missing"]
    assert main(["check", str(tmp_path)]) == 2
    assert "has no checkpoint and no export; give the run.dir of a training" in capsys.readouterr().err


def test_a_run_that_diverges_saves_nothing_and_goes_on_with_other_rates(
    straight: Path, setting: Path, ranks: Any
) -> None:
    directory = setting.parent / "diverged"

    def run(*overrides: str) -> list[str | None]:
        common = [f"run.dir={directory}", "checkpoints.every=1000"]
        answers: list[str | None] = ranks(2).run(jobs.run, config_file=setting, overrides=[*common, *overrides])
        return answers

    run("run.max_hours=1.0e-9")
    (answer, other) = run("run.resume=changed", "optimizer.learning_rate=1.0e+25")
    assert answer == other and answer is not None
    assert "training has diverged; the latest checkpoint is from step 1; lower the rates" in answer
    (report,) = directory.glob("diverged-step-*.json")
    assert report.name in answer
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-1"]
    assert not (directory / "final").exists()
    assert run("run.resume=changed") == [None, None]
    assert_same_student(directory, straight)


@pytest.mark.parametrize("changed", ["train", "validation"])
def test_rows_that_changed_under_their_name_are_refused(
    straight: Path, setting: Path, ranks: Any, tmp_path: Path, changed: str
) -> None:
    directory = unfinished(straight, tmp_path / "run")
    path = setting.parent / f"{changed}.jsonl"
    content = path.read_text()
    try:
        path.write_text(content.replace("word 5", "word 6").replace("word 25", "word 26"))
        answers = ranks(2).run(jobs.run, config_file=setting, overrides=[f"run.dir={directory}"])
    finally:
        path.write_text(content)
    for answer in answers:
        assert f"was started with other contents of data.{changed} (the file, its template" in answer


def test_a_run_without_generation_chooses_the_best_by_loss(setting: Path, ranks: Any) -> None:
    directory = setting.parent / "by_loss"
    overrides = [f"run.dir={directory}", "validation.generate=false", "schedule.steps=3", "run.log_every=2"]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    records = read_metrics(directory)
    assert [record["step"] for record in records] == [2, 3]
    assert "validation/rougeL" not in records[-1] and "validation/loss" in records[-1]
    assert (directory / "best" / "model.safetensors").exists()


def test_fixed_responses_replace_rollouts(setting: Path, ranks: Any) -> None:
    directory = setting.parent / "responses"
    responses = setting.parent / "responses.jsonl"
    rows = [{"prompt": f"Say {i}.", "response": f"{i}"} for i in range(8)]
    responses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        f"run.dir={directory}",
        "data.train=null",
        f"data.responses={responses}",
        "validation.generate=false",
        "schedule.steps=2",
    ]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    # "0" … "7" and the end token each.
    assert [record["mean_response_length"] for record in read_metrics(directory)] == [2.0, 2.0]


def test_sft_learns_the_responses(setting: Path, ranks: Any) -> None:
    directory = setting.parent / "sft"
    overrides = [
        f"run.dir={directory}",
        "method=sft",
        "model.teacher=null",
        "schedule.steps=60",
        "optimizer.learning_rate=5.0e-3",
        "validation.every=60",
        "model.student_dropout=false",
    ]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    records = read_metrics(directory)
    assert records[-1]["cross_entropy"] < 0.5 * records[0]["cross_entropy"]
    assert "student_kd" not in records[0]
