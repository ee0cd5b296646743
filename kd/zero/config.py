"""DeepSpeed's configuration: ZeRO and communication from a JSON file, all else from `Config`."""

import difflib
from typing import Any

from pydantic import ValidationError

from kd.config.packaged import find_ds_config
from kd.config.schema import Config
from kd.errors import UserError
from kd.files import parse_json

# What a file may set. Everything that changes the result of training is set in the YAML only.
FILE_KEYS = (
    "zero_optimization",
    "activation_checkpointing",
    "aio",
    "comms_logger",
    "flops_profiler",
    "memory_breakdown",
    "wall_clock_breakdown",
    "steps_per_print",
)
OWNED_BY = {
    "train_batch_size": "schedule.global_batch",
    "train_micro_batch_size_per_gpu": "schedule.micro_batch",
    "gradient_accumulation_steps": "schedule.global_batch and schedule.micro_batch",
    "gradient_clipping": "optimizer.grad_clip",
    "optimizer": "optimizer",
    "scheduler": "schedule",
    "fp16": "model.dtype",
    "bf16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
}

Json = dict[str, Any]

_FP32_ACCUMULATION = {"grad_accum_dtype": "fp32"}


def student_deepspeed_config(config: Config) -> Json:
    """Configuration of the student's engine.

    Raises:
        UserError: the JSON file is missing, broken, or sets what belongs to the YAML.
    """
    settings = _without_linear_patch(read_deepspeed_json(config.engine.student))
    return settings | _owned_settings(config, precision=config.model.dtype, stage=zero_stage(settings))


def teacher_deepspeed_config(config: Config) -> Json:
    """Configuration of the teacher's engine, in which at most the soft prompt is trainable.

    Raises:
        UserError: as for the student, or a ZeRO stage other than 3 and 0.
    """
    settings = _without_linear_patch(read_deepspeed_json(config.engine.teacher))
    if (stage := zero_stage(settings)) not in (0, 3):
        raise UserError(
            f"{config.engine.teacher}: ZeRO stage {stage}; the frozen teacher is partitioned with stage 3"
            " (ds_configs/zero3.json) or resident on each rank with stage 0 (ds_configs/zero0.json)"
        )
    # With bf16 switched on, DeepSpeed would turn the fp32 prompt into bf16 and reduce its gradient
    # there. The frozen weights are bf16 as they were loaded. fp16 stays on for its loss scale.
    precision = "fp16" if config.model.dtype == "fp16" else "fp32"
    return settings | _owned_settings(config, precision=precision, stage=stage)


def loading_config(settings: Json, *, dtype: str) -> Json:
    """The same settings with the precision in which weights are created and partitioned while loading."""
    return {key: value for key, value in settings.items() if key not in ("bf16", "fp16")} | _precision(dtype)


def training_engine_config(settings: Json) -> Json:
    """The same settings for an engine that trains: fp16 needs ZeRO-1 in place of ZeRO-0.

    Without ZeRO, DeepSpeed does not scale the loss, but divides the gradient by the loss scale: updates would be
    65,536 times too small. ZeRO-1 keeps all weights resident too.
    """
    if "fp16" not in settings or zero_stage(settings) > 0:
        return settings
    section = {**settings.get("zero_optimization", {}), "stage": 1}
    return {**settings, "zero_optimization": section, "data_types": _FP32_ACCUMULATION}


def zero_stage(settings: Json) -> int:
    """ZeRO stage, 0 to 3."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def read_deepspeed_json(name: str) -> Json:
    """Read and check one file, given by its path or by the name of a packaged one.

    Raises:
        UserError: the file is missing, broken, or sets what belongs to the YAML.
    """
    try:
        settings = parse_json(find_ds_config(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{name}: cannot be read ({error.strerror}); give a DeepSpeed JSON such as ds_configs/zero3.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not valid JSON ({error}); see ds_configs/zero3.json") from None
    if not isinstance(settings, dict):
        raise UserError(f"{name}: expected a JSON object, found {type(settings).__name__}")
    for key in settings:
        if key in OWNED_BY:
            raise UserError(f"{name}: sets {key}, which belongs to {OWNED_BY[key]} in the YAML; remove it there")
        if key not in FILE_KEYS:
            nearest = difflib.get_close_matches(key, FILE_KEYS, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(FILE_KEYS)}"
            raise UserError(f"{name}: unknown key {key}; {hint}")
    _check_zero_section(settings.get("zero_optimization", {}), name=name)
    return settings


def _check_zero_section(section: object, *, name: str) -> None:
    # Imported here: evaluation reads no such file and should not wait for DeepSpeed.
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    if not isinstance(section, dict):
        raise UserError(f'{name}: zero_optimization is {section!r}; expected an object such as {{"stage": 3}}')
    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"])
        known = [field.alias or key for key, field in DeepSpeedZeroConfig.model_fields.items()]
        nearest = difflib.get_close_matches(location, known, n=1)
        hint = f"; did you mean {nearest[0]}?" if first["type"] == "extra_forbidden" and nearest else ""
        raise UserError(f"{name}: zero_optimization.{location}: {first['msg'].lower()}{hint}") from None


def _owned_settings(config: Config, *, precision: str, stage: int) -> Json:
    return {
        "train_micro_batch_size_per_gpu": config.schedule.micro_batch,
        # A global batch has its own boundaries and one step(); with a count here, DeepSpeed would wait for
        # as many step() calls and train nothing.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.grad_clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": "fp32",
        # Without ZeRO, DeepSpeed has no such option: it accumulates in the precision of the weights.
        # It synchronises the device in every forward pass.
        "timers": {"throughput": {"enabled": False}},
        **({"data_types": _FP32_ACCUMULATION} if stage else {}),
        **_precision(precision),
    }


def _without_linear_patch(settings: Json) -> Json:
    """The same settings, with which ZeRO-3 leaves torch's `linear` in place.

    Decoding would pay for DeepSpeed's; `kd.zero.residency.linear_that_gathers` uses it where training needs it.
    """
    if zero_stage(settings) < 3:
        return settings
    return {**settings, "zero_optimization": {**settings["zero_optimization"], "memory_efficient_linear": False}}


def _precision(dtype: str) -> Json:
    return {} if dtype == "fp32" else {dtype: {"enabled": True}}
