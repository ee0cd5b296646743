"""Runs of the methods: what they log, and that they resume bit-exactly."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd.train.metric_log import read_metrics
from tests.distributed import run_jobs as jobs
from tests.distributed.harness import write_config
from tests.distributed.test_run import TIMES
from tests.tiny_models import save_tiny_model

NUM_STEPS = 3
LOSSES = {"student_kd", "cross_entropy", "prompt_kd", "prompt_regularization"}
# What each method is run with, and which losses it logs.
METHODS = {
    "sft": (["model.teacher=null"], {"cross_entropy"}),
    "kd": ([], {"student_kd", "cross_entropy"}),
    "seqkd": (["data.responses=RESPONSES"], {"student_kd", "cross_entropy"}),
    "gkd": (["gkd.student_fraction=0.5", "gkd.sft_weight=0.5"], {"student_kd", "cross_entropy"}),
    # A learning rate that spoils the student: the validation loss rises from the first step on.
    "distillm": (
        ["distillm.initial_threshold=0.8", "distillm.buffer_rows=4", "optimizer.learning_rate=0.3"],
        {"student_kd"},
    ),
    # With a prompt tuned on both kinds of responses.
    "promptkd": (
        ["prompt.student_fraction=0.5", "prompt.learning_rate=1.0e-3"],
        {"student_kd", "prompt_kd", "prompt_regularization"},
    ),
}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of models, data, the teacher's responses and a configuration."""
    directory = tmp_path_factory.mktemp("methods")
    save_tiny_model(directory / "teacher", "gpt2", seed=1, width=48, layers=3)
    save_tiny_model(directory / "student", "gpt2", seed=2)
    rows = [{"instruction": f"Repeat the word number {i}.", "output": f"word {i}"} for i in range(16)]
    fixed = [{"prompt": row["instruction"], "response": row["output"]} for row in rows]
    for name, part in (("train", rows[:12]), ("validation", rows[12:]), ("responses", fixed)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    path = write_config(directory)
    values = yaml.safe_load(path.read_text())
    values["data"] |= {
        "train": str(directory / "train.jsonl"),
        "validation": str(directory / "validation.jsonl"),
        "max_prompt_tokens": 100,
        "max_sequence_tokens": 116,
    }
    values["optimizer"] |= {"name": "adamw", "learning_rate": 1.0e-3}
    values["schedule"] |= {"steps": NUM_STEPS, "micro_batch": 2}
    values["validation"] = {"every": 1, "rows": 4, "generate": False}
    values["checkpoints"] = {"every": 2, "keep": 2}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_run_resumes_bit_exactly(method: str, setting: Path, ranks: Any) -> None:
    """From the checkpoint after step 2 of 3, as if it had been killed after that."""
    straight, resumed = setting.parent / method, setting.parent / f"{method}-resumed"
    entries, losses = METHODS[method]
    overrides = [entry.replace("RESPONSES", str(setting.parent / "responses.jsonl")) for entry in entries]

    def run(directory: Path) -> list[str | None]:
        settings = [f"method={method}", f"run.dir={directory}", *overrides]
        return ranks(2).run(jobs.run, config_file=setting, overrides=settings)

    assert run(straight) == [None, None]
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "final")
    shutil.rmtree(resumed / "checkpoints" / "step-3")
    assert run(resumed) == [None, None]
    assert "resuming after step 2" in (resumed / "log.txt").read_text()

    records = read_metrics(straight)
    assert {"grad_norm", "validation/loss"} <= set(records[0])
    assert LOSSES & set(records[0]) == losses
    if method == "distillm":
        assert [record["replay_threshold"] for record in records] == pytest.approx([0.8, 0.9, 1.0])
    for ours, theirs in zip(read_metrics(resumed), records, strict=True):
        assert {k: v for k, v in ours.items() if k not in TIMES} == {k: v for k, v in theirs.items() if k not in TIMES}
    files = {path.relative_to(straight) for path in (straight / "final").rglob("*.safetensors")}
    # The student, and the soft prompt where there is one.
    assert len(files) == (2 if method == "promptkd" else 1)
    for file in files:
        ours, theirs = load_file(resumed / file), load_file(straight / file)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert torch.equal(value, theirs[name]), (file, name)


def test_kim_and_rush_need_no_teacher_for_training(setting: Path, ranks: Any) -> None:
    """With r = 0 only the teacher's tokenizer and configuration are read: its weights may be elsewhere by now."""
    directory = setting.parent / "no_weights"
    shutil.copytree(setting.parent / "teacher", directory)
    (directory / "model.safetensors").unlink()
    overrides = ["method=seqkd", "seqkd.ratio=0", "schedule.steps=1", f"run.dir={setting.parent / 'kim_and_rush'}"]
    overrides += [f"model.teacher={directory}", f"data.responses={setting.parent / 'responses.jsonl'}"]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    (record,) = read_metrics(setting.parent / "kim_and_rush")
    assert "cross_entropy" in record
    assert "student_kd" not in record
