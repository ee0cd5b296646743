"""Quantized checkpoints: what config.json says of them, and where a model may be one."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kd.config.schema import Config
from kd.errors import UserError
from kd.zero.config import teacher_deepspeed_config, zero_stage

_ORIGINAL = "give the checkpoint that it was made from"
_SCALES = {
    "bitsandbytes": (".SCB", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"),
    "fp8": (".weight_scale_inv",),
    "compressed-tensors": (".weight_scale",),
}
"""Ends of the names of the scales that each supported method stores."""
_PACKAGES = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed_tensors"}
_DEQUANTIZED = ("fp8", "compressed-tensors")
"""Methods whose weights are floats of `model.dtype` once they are loaded: kernels of theirs have no gradient."""
_PACKS = "support_avx512bf16_for_cpu"
"""In 4 bits on some CPUs: a pass without gradient rearranges the weights, and later passes lose their gradient."""


def is_quantized(config: PretrainedConfig) -> bool:
    """Whether config.json says that the weights are quantized."""
    return getattr(config, "quantization_config", None) is not None


def check_quantization(config: PretrainedConfig, *, name: str, place: str) -> None:
    """Refuse quantized weights that cannot be loaded here; `place` is the directory or hub name.

    Settings of `config` change: fp8 and compressed-tensors are dequantized while they are loaded.

    Raises:
        UserError: a method that is not supported, the package is missing, or the directory's safetensors files are not
            quantized.
    """
    if not is_quantized(config):
        return
    found: Any = config.quantization_config
    settings = found if isinstance(found, dict) else found.to_dict()
    method = settings.get("quant_method", "unknown method")
    said = f"model {name}: its config.json has a quantization_config ({method})"
    in_bits = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    if method not in _SCALES or (method == "bitsandbytes" and not in_bits):
        raise UserError(
            f"{said}; only bitsandbytes in 4 or 8 bits, fp8 and compressed-tensors are supported; {_ORIGINAL}"
        )
    if settings.get("bnb_4bit_quant_storage", "uint8") != "uint8":
        raise UserError(f"{said} with bnb_4bit_quant_storage, which is not uint8 as expected; {_ORIGINAL}")
    if method in _PACKAGES and importlib.util.find_spec(_PACKAGES[method]) is None:
        raise UserError(f"{said}, and {method} is not installed; pip install {method}, or {_ORIGINAL}")
    try:
        keys = _stored_keys(Path(place))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"model {name}: weights cannot be read ({error}); expected safetensors files") from None
    if keys and not any(key.endswith(_SCALES[method]) for key in keys):
        raise UserError(f"{said}, but its weights are not quantized; remove quantization_config from config.json")
    if method in _DEQUANTIZED:
        config.quantization_config = {**settings, "dequantize": True}


def check_unquantized(config: PretrainedConfig, *, name: str, reason: str) -> None:
    """Refuse a quantized model where it cannot be one.

    Raises:
        UserError: it is quantized; the message has the `reason`.
    """
    if is_quantized(config):
        raise UserError(f"model {name}: is quantized, but {reason}; {_ORIGINAL}")


def check_quantized_teacher(teacher: PretrainedConfig, *, config: Config) -> None:
    """Refuse a quantized teacher that would be partitioned.

    Raises:
        UserError: it would be.
    """
    if is_quantized(teacher) and zero_stage(teacher_deepspeed_config(config)) > 0:
        raise UserError(
            f"model {config.model.teacher}: is quantized, but {config.engine.teacher} would partition it, which is not"
            f" supported; set engine.teacher=ds_configs/zero0.json, or {_ORIGINAL}"
        )


def settle_quantized(model: PreTrainedModel, *, dtype: torch.dtype, name: str) -> None:
    """Give what is not quantized of a quantized `model` the precision `dtype`, which loading does not.

    Raises:
        UserError: embeddings or head are quantized.
    """
    ends = {"embeddings": model.get_input_embeddings(), "output head": model.get_output_embeddings()}
    for what, module in ends.items():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise UserError(f"model {name}: its {what} is quantized, which losses and prompts read; {_ORIGINAL}")
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        if hasattr(module, _PACKS):
            setattr(module, _PACKS, False)


def _stored_keys(directory: Path) -> list[str]:
    """Names of the tensors in a directory's safetensors files; none if there are no such files."""
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    if not single.is_file():
        return []
    with safe_open(single, framework="pt") as file:
        return list(file.keys())
