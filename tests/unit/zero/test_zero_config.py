"""DeepSpeed's settings: ZeRO from a file, everything that changes the result from the YAML."""

import json
from pathlib import Path
from typing import Any

import pytest

from kd.config.schema import Config, DataConfig, EngineConfig, ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig
from kd.errors import UserError
from kd.zero.config import (
    OWNED_BY,
    loading_config,
    read_deepspeed_json,
    student_deepspeed_config,
    teacher_deepspeed_config,
    zero_stage,
)

SHIPPED = sorted((Path(__file__).parents[3] / "ds_configs").glob("*.json"))


def make_config(*, dtype: Any = "bf16", student: str = "ds_configs/zero3.json", teacher: str | None = None) -> Config:
    return Config(
        model=ModelConfig(student="s", teacher="t", dtype=dtype),
        data=DataConfig(train="rows.jsonl"),
        run=RunConfig(dir="x"),
        optimizer=OptimizerConfig(grad_clip=0.5),
        schedule=ScheduleConfig(micro_batch=2, global_batch=8),
        engine=EngineConfig(student=student, teacher=teacher or "ds_configs/zero3.json"),
    )


def write(directory: Path, content: str) -> str:
    path = directory / "zero.json"
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_is_accepted(path: Path) -> None:
    settings = student_deepspeed_config(make_config(student=str(path)))
    assert zero_stage(settings) == int(path.stem.removeprefix("zero")[0])


def test_the_yaml_decides_batches_clipping_and_precision() -> None:
    settings = student_deepspeed_config(make_config())
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True}
    assert "fp16" not in settings


def test_gradient_accumulation_is_off_and_gradients_are_summed_in_fp32() -> None:
    for settings in (student_deepspeed_config(make_config()), teacher_deepspeed_config(make_config())):
        # A count here makes DeepSpeed wait for as many step() calls: one per global batch trains nothing.
        assert settings["gradient_accumulation_steps"] == 1
        # In bf16 the prompt's tiny gradient would be rounded while it is reduced.
        assert settings["communication_data_type"] == "fp32"
        assert settings["data_types"] == {"grad_accum_dtype": "fp32"}


@pytest.mark.parametrize(
    ("dtype", "student", "teacher"),
    [("bf16", {"bf16"}, set()), ("fp16", {"fp16"}, {"fp16"}), ("fp32", set(), set())],
)
def test_the_soft_prompt_stays_fp32_beside_bf16_weights(dtype: str, student: set[str], teacher: set[str]) -> None:
    config = make_config(dtype=dtype)
    assert student_deepspeed_config(config).keys() & {"bf16", "fp16"} == student
    assert teacher_deepspeed_config(config).keys() & {"bf16", "fp16"} == teacher


def test_weights_are_loaded_in_the_models_precision() -> None:
    settings = loading_config(teacher_deepspeed_config(make_config()), dtype="bf16")
    assert settings["bf16"] == {"enabled": True}
    settings = loading_config(teacher_deepspeed_config(make_config(dtype="fp16")), dtype="fp32")
    assert not settings.keys() & {"bf16", "fp16"}


@pytest.mark.parametrize("stage", [1, 2])
def test_the_teacher_is_partitioned_with_stage_3_or_not_at_all(stage: int) -> None:
    with pytest.raises(UserError, match=f"ZeRO stage {stage}; the frozen teacher"):
        teacher_deepspeed_config(make_config(teacher=f"ds_configs/zero{stage}.json"))


@pytest.mark.parametrize("key", OWNED_BY)
def test_a_file_that_sets_what_the_yaml_owns_is_refused(tmp_path: Path, key: str) -> None:
    name = write(tmp_path, json.dumps({"zero_optimization": {"stage": 3}, key: 1}))
    with pytest.raises(UserError, match=f"sets {key}, which belongs to {OWNED_BY[key]} in the YAML"):
        read_deepspeed_json(name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"zero_optimisation": {"stage": 3}}', "unknown key zero_optimisation; did you mean zero_optimization?"),
        ('{"x": 1}', "unknown key x; expected one of zero_optimization"),
        ('{"zero_optimization": {"stage": 4}}', r"zero_optimization\.stage: input should be 0, 1, 2"),
        ('{"zero_optimization": {"stage": "three"}}', r"zero_optimization\.stage: input should be 0, 1, 2"),
        ('{"zero_optimization": 3}', r"zero_optimization is 3; expected an object"),
        (
            '{"zero_optimization": {"stage": 3, "stage3_param_persistance_threshold": 0}}',
            "did you mean stage3_param_persistence_threshold",
        ),
        ("{", "not valid JSON"),
        ('{"zero_optimization": {"stage": 3, "stage": 0}}', r"not valid JSON \(an object has `stage` more than once"),
        ("[]", "expected a JSON object, found list"),
    ],
)
def test_a_file_that_deepspeed_would_not_read_as_meant_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_deepspeed_json(write(tmp_path, content))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match="nowhere.json: cannot be read"):
        read_deepspeed_json("nowhere.json")


def test_a_relative_name_is_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert zero_stage(read_deepspeed_json("ds_configs/zero2.json")) == 2
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    assert zero_stage(read_deepspeed_json("ds_configs/zero2.json")) == 1
