"""A whole run with adapters on both models: resume, and what others can load of it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed import loading_jobs
from tests.distributed import run_jobs as jobs
from tests.distributed.harness import assert_same_updates, write_config
from tests.distributed.test_lora import STUDENT_LORA, TEACHER_LORA
from tests.tiny_models import save_tiny_model

NUM_STEPS = 3
OTHER_METHODS = {
    "sft": ["model.teacher=null"],
    "kd": [],
    "seqkd": ["data.responses={RESPONSES}"],
    "gkd": [],
    "distillm": ["distillm.buffer_rows=4"],
    "minillm": ["minillm.corpus=none", "minillm.rollouts=4"],
}
OVERRIDES = [*TEACHER_LORA, *STUDENT_LORA]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("lora_run")
    save_tiny_model(directory / "teacher", "gpt2", seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", "gpt2", seed=2, padding=3)
    rows = [{"instruction": f"Repeat the word number {i}.", "output": f"word {i}"} for i in range(16)]
    (directory / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixed = [{"prompt": row["instruction"], "response": row["output"]} for row in rows]
    (directory / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fixed))
    path = write_config(directory)
    values = yaml.safe_load(path.read_text())
    values["data"] |= {
        "train": str(directory / "train.jsonl"),
        "validation": str(directory / "train.jsonl"),
        "max_prompt_tokens": 100,
        "max_sequence_tokens": 116,
    }
    values["optimizer"] |= {"name": "adamw", "learning_rate": 1.0e-2}
    values["prompt"] |= {"learning_rate": 1.0e-2}
    values["schedule"] |= {"steps": NUM_STEPS}
    values["validation"] = {"every": 2, "rows": 4}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def straight(setting: Path, ranks: Any) -> Path:
    directory = setting.parent / "straight"
    overrides = [*OVERRIDES, f"run.dir={directory}"]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    return directory


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.arange(1, 40)[None]).logits
    return logits


def test_an_interrupted_run_resumes_bit_exactly(straight: Path, setting: Path, ranks: Any) -> None:
    directory = setting.parent / "stopped"
    for stop in ("1.0e-9", "null"):
        overrides = [*OVERRIDES, f"run.dir={directory}", f"run.max_hours={stop}"]
        reason = None if stop == "null" else "run.max_hours=1e-09 have passed"
        assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [reason] * 2
    for name in ("model", "adapter/adapter_model", "teacher_adapter/adapter_model"):
        ours = load_file(directory / "final" / f"{name}.safetensors")
        theirs = load_file(straight / "final" / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), f"{name}: {key}"


def test_the_merged_student_is_the_base_with_its_adapters(straight: Path, setting: Path) -> None:
    merged, info = AutoModelForCausalLM.from_pretrained(straight / "final", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = AutoModelForCausalLM.from_pretrained(setting.parent / "student")
    plain = logits_of(base)
    adapted = peft.PeftModel.from_pretrained(base, straight / "final" / "adapter")
    torch.testing.assert_close(logits_of(merged), logits_of(adapted), atol=1e-4, rtol=1e-4)
    assert (logits_of(merged) - plain).abs().max() > 0.01, "training must show"


def test_the_teachers_adapters_load_on_the_teacher(straight: Path, setting: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(setting.parent / "teacher")
    plain = logits_of(teacher)
    adapted = peft.PeftModel.from_pretrained(teacher, straight / "final" / "teacher_adapter")
    assert (logits_of(adapted) - plain).abs().max() > 0.01
    with adapted.disable_adapter():
        assert torch.equal(logits_of(adapted), plain)
    settings = json.loads((straight / "final" / "teacher_adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(setting.parent / "teacher")


ZERO3 = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "memory_efficient_linear": False},
}


@pytest.mark.parametrize("settings", [{}, ZERO3], ids=["resident", "partitioned"])
def test_an_exported_adapter_is_a_model(straight: Path, setting: Path, ranks: Any, settings: dict[str, Any]) -> None:
    base = AutoModelForCausalLM.from_pretrained(setting.parent / "teacher")
    merged: Any = peft.PeftModel.from_pretrained(base, straight / "final" / "teacher_adapter")
    expected = {
        "adapter": load_file(straight / "final" / "model.safetensors"),
        "teacher_adapter": dict(merged.merge_and_unload().named_parameters()),
    }
    for folder, weights in expected.items():
        place = straight / "final" / folder
        for found in ranks(2).run(loading_jobs.loaded_weights, model=place, deepspeed_config=settings):
            assert found.keys() == weights.keys()
            for name, value in found.items():
                torch.testing.assert_close(value, weights[name].detach(), atol=1e-7, rtol=0)
    published = load_file(setting.parent / "student" / "model.safetensors")
    assert any((value - published[name]).abs().max() > 1e-3 for name, value in expected["adapter"].items())


@pytest.mark.parametrize("stage", [0, 3])
def test_exported_adapters_are_trained_on(straight: Path, setting: Path, ranks: Any, stage: int) -> None:
    """As the two merged models are."""
    final, directory = straight / "final", setting.parent / f"on-adapters-{stage}"
    base = AutoModelForCausalLM.from_pretrained(setting.parent / "teacher")
    merged: Any = peft.PeftModel.from_pretrained(base, final / "teacher_adapter")
    merged.merge_and_unload().save_pretrained(directory / "teacher")
    for path in (setting.parent / "teacher").glob("*token*"):
        shutil.copy(path, directory / "teacher")
    places = {"adapters": (final / "adapter", final / "teacher_adapter"), "merged": (final, directory / "teacher")}
    weights = {}
    for name, (student, teacher) in places.items():
        config = write_config(directory, stage=stage, teacher_stage=stage)
        engines = yaml.safe_load(config.read_text())["engine"]
        overrides = ["method=kd", "schedule.steps=1", "optimizer.name=sgd", "optimizer.learning_rate=0.5"]
        overrides += ["validation.generate=false", f"run.dir={directory / name}"]
        overrides += [f"model.student={student}", f"model.teacher={teacher}"]
        overrides += [f"engine.{role}={path}" for role, path in engines.items()]
        assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
        weights[name] = load_file(directory / name / "final" / "model.safetensors")
    before = load_file(final / "model.safetensors")
    updates = {name: value - before[name] for name, value in weights["merged"].items()}
    assert_same_updates(before, weights["adapters"], updates)
    log = (directory / "adapters" / "log.txt").read_text()
    for folder, base_name in (("adapter", "student"), ("teacher_adapter", "teacher")):
        line = f"{final / folder} is a LoRA adapter, merged into the weights of {setting.parent / base_name}"
        assert line in " ".join(log.split())


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_every_method_trains_adapters_and_leaves_the_base_alone(method: str, setting: Path, ranks: Any) -> None:
    directory = setting.parent / method
    places = {"RESPONSES": str(setting.parent / "responses.jsonl")}
    overrides = [
        *STUDENT_LORA,
        f"method={method}",
        f"run.dir={directory}",
        "schedule.steps=1",
        "validation.generate=false",
        *(entry.format_map(places) for entry in OTHER_METHODS[method]),
    ]
    assert ranks(2).run(jobs.run, config_file=setting, overrides=overrides) == [None, None]
    merged, base = (
        load_file(place / "model.safetensors") for place in (directory / "final", setting.parent / "student")
    )
    assert merged.keys() == base.keys()
    moved = {name for name, value in merged.items() if not torch.equal(value, base[name])}
    # What peft adapts in GPT-2.
    assert moved == {name for name in base if name.endswith("c_attn.weight")}
    assert len(load_file(directory / "final" / "adapter" / "adapter_model.safetensors")) == 2 * len(moved)
    assert not (directory / "final" / "teacher_adapter").exists()


def test_a_checkpoint_holds_no_frozen_weights(straight: Path) -> None:
    """Only adapters and their optimizer state: what the models were loaded from is still where it was."""
    state = straight / "checkpoints" / f"step-{NUM_STEPS}"
    for model in ("student", "teacher"):
        saved = sum(path.stat().st_size for path in (state / model).rglob("*model_states.pt"))
        assert 0 < saved < 0.5 * (straight.parent / model / "model.safetensors").stat().st_size, model


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("[nothing]", r"student_lora.targets: .*not found.*name linear layers"),
        ("[wte]", r"student_lora.targets: embeddings and head cannot be adapted"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(setting: Path, ranks: Any, targets: str, message: str) -> None:
    overrides = [*OVERRIDES, f"student_lora.targets={targets}", f"run.dir={setting.parent / 'refused'}"]
    for answer in ranks(2).run(jobs.run, config_file=setting, overrides=overrides):
        assert re.search(message, str(answer)), answer
