"""MiniLLM runs on two ranks: what they log, and that they resume bit-exactly within a collection."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd.train.metric_log import read_metrics
from tests.distributed import run_jobs as jobs
from tests.distributed.harness import write_config
from tests.tiny_models import save_tiny_model

# A collection of two batches lasts for four steps.
NUM_STEPS = 6
LOSSES = {"policy_gradient", "student_kd", "reward", "importance_weight", "corpus_cross_entropy", "corpus_kd"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of models, data, a corpus and a configuration."""
    directory = tmp_path_factory.mktemp("minillm")
    save_tiny_model(directory / "teacher", "gpt2", seed=1, width=48)
    save_tiny_model(directory / "student", "gpt2", seed=2, layers=1)
    rows = [{"instruction": f"Repeat the word number {i}."} for i in range(20)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "corpus").mkdir()
    (directory / "corpus" / "a.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 40)
    path = write_config(directory, stage=2)
    values = yaml.safe_load(path.read_text())
    values["method"] = "minillm"
    values["data"] = {
        "train": str(directory / "train.jsonl"),
        "max_prompt_tokens": 100,
        "max_sequence_tokens": 108,
    }
    values["minillm"] = {"corpus": str(directory / "corpus"), "rollouts": 8, "inner_epochs": 2}
    values["generation"] = {"max_new_tokens": 8}
    values["optimizer"] |= {"name": "adamw", "learning_rate": 1.0e-3}
    values["schedule"] |= {"steps": NUM_STEPS, "micro_batch": 2}
    values["checkpoints"] = {"every": 3, "keep": 1}
    values["run"] = {"dir": str(directory / "straight"), "tensorboard": False}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def straight(setting: Path, ranks: Any) -> Path:
    """A run without interruption."""
    assert ranks(2).run(jobs.run, config_file=setting, overrides=[]) == [None, None]
    return setting.parent / "straight"


def test_every_step_logs_its_losses(straight: Path) -> None:
    records = read_metrics(straight)
    assert [record["step"] for record in records] == list(range(1, NUM_STEPS + 1))
    assert all(set(record) >= LOSSES for record in records)
    # Sampling happens where a collection begins, and nowhere else.
    assert [record["step"] for record in records if "generation_seconds" in record] == [1, 5]
    assert f"{straight.parent / 'corpus'}: " in (straight / "log.txt").read_text()


def test_runs_that_stop_within_a_collection_resume_bit_exactly(straight: Path, setting: Path, ranks: Any) -> None:
    """Stopped inside an inner epoch of a collection, and between two of them."""
    directory = setting.parent / "stopped"
    for stop, steps in (("1.0e-9", 1), ("1.0e-9", 2), ("null", NUM_STEPS)):
        overrides = [f"run.dir={directory}", f"run.max_hours={stop}"]
        reason = None if stop == "null" else "run.max_hours=1e-09 have passed"
        assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [reason] * 2
        assert len(read_metrics(directory)) == steps
    for ours, theirs in zip(read_metrics(directory), read_metrics(straight), strict=True):
        names = {*LOSSES, "response_tokens", "grad_norm"}
        assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    ours, theirs = (load_file(path / "final" / "model.safetensors") for path in (directory, straight))
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("minillm.corpus=null", "needs minillm.corpus, plain text such as the student was pre-trained on"),
        ("minillm.corpus=nowhere", "minillm.corpus nowhere: found nothing there"),
        ("minillm.rollouts=6", "minillm.rollouts=6 is not a multiple of schedule.global_batch=4"),
        ("generation.top_p=0.9", "set generation.temperature=1, generation.top_p=1 and generation.top_k=0"),
    ],
)
def test_what_it_cannot_train_with_is_refused(setting: Path, ranks: Any, override: str, message: str) -> None:
    overrides = [f"run.dir={setting.parent / 'refused'}", override]
    for answer in ranks(2).run(jobs.run, config_file=setting, overrides=overrides):
        assert message in answer


def test_corpus_none_and_fixed_responses_run_too(setting: Path, ranks: Any) -> None:
    directory = setting.parent / "ablation"
    responses = setting.parent / "responses.jsonl"
    responses.write_text("".join(json.dumps({"prompt": f"Say {i}.", "response": f"{i}"}) + "\n" for i in range(8)))
    overrides = [
        f"run.dir={directory}",
        "minillm.corpus=none",
        "data.train=null",
        f"data.responses={responses}",
        "schedule.steps=1",
    ]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    (record,) = read_metrics(directory)
    assert "corpus_kd" not in record and "policy_gradient" in record
    assert record["mean_response_length"] == 2
