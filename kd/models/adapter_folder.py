"""A LoRA adapter's folder as a model: peft's files, whose update is merged into the base model that they name."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from kd.errors import UserError

if TYPE_CHECKING:
    from peft.tuners.lora import Linear as AdaptedLinear

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_MERGE = "merge it into its base model with peft (merge_and_unload, then save_pretrained) and give that directory"

_MERGED_SETTINGS = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"} | {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}
_SETTINGS_WITHOUT_EFFECT = {"peft_type", "task_type", "base_model_name_or_path", "auto_mapping", "peft_version"} | {
    *("inference_mode", "lora_dropout", "runtime_config", "init_lora_weights", "eva_config"),
}
"""On a trained adapter's update."""
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of `init_lora_weights` that leave the base's weights alone."""


def base_of(name: str) -> str:
    """The base model of an adapter's folder; `name` itself for any other model.

    Raises:
        UserError: an adapter that lies beside a model, is broken, or cannot be merged exactly.
    """
    settings = _read_settings(name)
    return name if settings is None else str(settings["base_model_name_or_path"])


def tokenizer_of(name: str) -> str:
    """Where a model's tokenizer is: an adapter's folder may have its own, else it is the base's.

    Raises:
        UserError: as `base_of`.
    """
    return name if os.path.isfile(Path(name) / "tokenizer_config.json") else base_of(name)


def describe_adapter(name: str | None) -> list[str]:
    """One line about an adapter's folder, and none about any other model.

    Raises:
        UserError: as `base_of`.
    """
    if name is None or (base := base_of(name)) == name:
        return []
    return [f"{name} is a LoRA adapter, merged into the weights of {base}"]


def merge_adapter(model: PreTrainedModel, *, name: str) -> None:
    """Change the weights of `model`, the base of the adapter's folder `name`, to W + s·B·A; leave any other model.

    The sum is computed in float32 and rounded to W's precision. All ranks call it together: under ZeRO-3, one weight
    is gathered at a time.

    Raises:
        UserError: the adapter cannot be read, or does not fit the model.
    """
    settings = _read_settings(name)
    if settings is None:
        return
    # Imported here: they import DeepSpeed and peft, for which other models need not wait.
    from kd.models.lora import adapted_layers, plain_parameters
    from kd.zero.residency import gathered

    _inject(model, settings, name=name)
    layers = adapted_layers(model)
    _fill(layers, name=name)
    with torch.no_grad():
        for parameter in plain_parameters(model):
            if parameter.layer is not None:
                with gathered([parameter.base], changed_by=0):
                    parameter.base.copy_(parameter.value())
    for path, layer in layers.items():
        model.set_submodule(path, layer.get_base_layer())
    del model.peft_config
    # peft has frozen them.
    model.requires_grad_(True)


def _read_settings(name: str) -> dict[str, Any] | None:
    """The adapter_config.json of an adapter that can be merged; None for any other model."""
    directory = Path(name)
    # Unlike Path's methods, os.path has no error for names that the system refuses.
    if not os.path.isfile(directory / _CONFIG):
        return None
    if (directory / "config.json").is_file():
        raise UserError(f"model {name}: {_CONFIG} lies beside the model; merge the adapter with peft, or move it away")
    try:
        settings: dict[str, Any] = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"model {name}: {_CONFIG} cannot be read ({error}); save the adapter again with peft") from None
    kind = settings.get("peft_type") if isinstance(settings, dict) else None
    if kind != "LORA":
        raise UserError(f"model {name}: {_CONFIG} has peft_type {kind}, expected LORA; {_MERGE}")
    _check_mergeable(settings, name=name)
    base = settings.get("base_model_name_or_path")
    if not base or os.path.isfile(Path(base) / _CONFIG):
        found = f"{base}, an adapter too" if base else "none"
        raise UserError(
            f"model {name}: expected the base model in base_model_name_or_path of {_CONFIG}, found {found}; set it to"
            " the model that the adapter was trained on"
        )
    if not (directory / _WEIGHTS).is_file():
        raise UserError(f"model {name}: has {_CONFIG}, but no {_WEIGHTS}; save the adapter again with peft")
    return settings


def _check_mergeable(settings: dict[str, Any], *, name: str) -> None:
    import peft

    usual = vars(peft.LoraConfig())
    # Settings of other versions of peft are among them.
    others = settings.keys() - _MERGED_SETTINGS - _SETTINGS_WITHOUT_EFFECT
    special = [key for key in sorted(others) if settings[key] and settings[key] != usual.get(key)]
    if settings.get("init_lora_weights") not in _PLAIN_STARTS:
        special.append("init_lora_weights")
    if special:
        shown = json.dumps(settings[special[0]])[:60]
        raise UserError(f"model {name}: its adapter has {special[0]}={shown}; only plain LoRA is merged here; {_MERGE}")


def _inject(model: PreTrainedModel, settings: dict[str, Any], *, name: str) -> None:
    """Put matrices of the adapter's shapes and scales beside the layers that it adapts."""
    import peft
    from peft.tuners.lora import Linear, LoraLayer

    from kd.models.lora import inject

    try:
        inject(model, peft.LoraConfig(**{key: settings[key] for key in _MERGED_SETTINGS & settings.keys()}), seed=0)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model {name}: its adapter does not fit {settings['base_model_name_or_path']} ({reason[:200]}); set"
            f" base_model_name_or_path in {_CONFIG} to the model that it was trained on"
        ) from None
    embeddings: Any = model.get_input_embeddings()
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            tied = getattr(module.get_base_layer(), "weight", None) is getattr(embeddings, "weight", embeddings)
            if tied or not isinstance(module, Linear):
                what = "shares the embeddings' weight" if tied else "is no linear layer"
                raise UserError(f"model {name}: its adapter changes {path}, which {what}; {_MERGE}")


def _fill(layers: "dict[str, AdaptedLinear]", *, name: str) -> None:
    """Read the adapter's matrices, in float32, into those that `_inject` has made."""
    from kd.models.lora import ADAPTER

    file = Path(name) / _WEIGHTS
    try:
        stored: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"model {name}: {_WEIGHTS} cannot be read ({error}); save the adapter again with peft"
        ) from None
    for path, layer in layers.items():
        for kind, matrices in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
            key = f"base_model.model.{path}.{kind}.weight"
            matrix: Any = matrices[ADAPTER].weight
            values = stored.pop(key, None)
            if values is None or values.shape != matrix.shape:
                found = "nothing" if values is None else list(values.shape)
                raise UserError(
                    f"model {name}: {_WEIGHTS} has {found} for {key}, expected shape {list(matrix.shape)}; the base"
                    f" model or {_CONFIG} does not belong to this adapter"
                )
            matrix.data = values.to(matrix.device, torch.float32)
    if stored:
        raise UserError(
            f"model {name}: {_WEIGHTS} has {min(stored)}, which is no LoRA matrix of a layer that {_CONFIG} adapts in"
            f" the base model; {_MERGE}"
        )
