"""Makes a student from some of a teacher's layers, in any family whose decoder is one stack of them."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kd.errors import UserError
from kd.models.adapter_folder import base_of, merge_adapter
from kd.models.causal_lm import DTYPES, read_model_config
from kd.models.quantization import check_unquantized
from kd.models.vocabulary import load_tokenizer, save_tokenizer

# Lists in a configuration that may have as many entries as there are layers and mean something else.
_NOT_PER_LAYER = ("architectures", "eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")


def prune_layers(
    teacher: str, *, layers: Sequence[int] | int, out: Path, dtype: str | None, trust_remote_code: bool
) -> tuple[str, str]:
    """Write a student with the chosen layers of `teacher`, its embeddings, head, tokenizer and generation config.

    Args:
        layers: numbers of the teacher's layers, from 0, in ascending order; or the number of evenly spaced layers, the
            first and the last among them.
        out: directory of the student; must not exist.
        dtype: bf16, fp16 or fp32 of the stored weights; None for the teacher's.

    Returns:
        Lines about the teacher and about the student: layers, parameters and size.

    Raises:
        UserError: a layer that does not exist, an existing `out`, or a model that is not one stack of layers.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists already; remove it or choose another directory")
    config = read_model_config(teacher, trust_remote_code=trust_remote_code)
    check_unquantized(config, name=teacher, reason="a student of some of its layers would be trained")
    num_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(num_layers, int):
        raise UserError(f"model {teacher}: config.json has no number of layers; only decoder-only models can be pruned")
    chosen = _spread(layers, num_layers=num_layers) if isinstance(layers, int) else layers
    _check_layers(chosen, num_layers=num_layers)
    tokenizer = load_tokenizer(teacher, trust_remote_code=trust_remote_code)
    weights = "auto" if dtype is None else DTYPES[dtype]
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            base_of(teacher), config=config, dtype=weights, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model {teacher}: cannot be loaded ({reason}); expected a causal language model") from None
    merge_adapter(model, name=teacher)
    before = _describe_size(model, num_layers=num_layers)
    stack = find_layer_stack(model, num_layers=num_layers, name=teacher)
    kept = [model.get_submodule(f"{stack}.{index}") for index in chosen]
    model.set_submodule(stack, nn.ModuleList(kept))
    model.config = prune_config(model.config, layers=chosen)
    _check_loadable(model, name=teacher, trust_remote_code=trust_remote_code)
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        save_tokenizer(tokenizer, name=teacher, directory=partial)
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror}); choose a writable directory") from None
    after = _describe_size(model, num_layers=len(chosen))
    return f"teacher {teacher}: {before}", f"student {out}: {after}; layers {','.join(map(str, chosen))} of the teacher"


def find_layer_stack(model: PreTrainedModel, *, num_layers: int, name: str) -> str:
    """The name in `model` of the outermost list of `num_layers` modules, in any family.

    Raises:
        UserError: there is none, or more than one.
    """
    found: list[str] = []
    for path, module in model.named_modules():
        # Experts inside a layer may be as many as the layers.
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and len(module) == num_layers and not inside:
            found.append(path)
    if len(found) != 1:
        raise UserError(
            f"model {name}: expected one list of {num_layers} layers, found {', '.join(found) or 'none'}; only models"
            " that are one stack of decoder layers can be pruned"
        )
    return found[0]


def prune_config(config: PretrainedConfig, *, layers: Sequence[int]) -> PretrainedConfig:
    """Return the configuration with only these layers, also in its lists with one entry for each layer."""
    values: dict[str, Any] = config.to_dict()
    name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for key, value in values.items():
        if isinstance(value, list) and len(value) == values[name] and key not in _NOT_PER_LAYER:
            values[key] = [value[index] for index in layers]
    # A new object, because a configuration refuses a number of layers that its lists do not have.
    return type(config).from_dict(values | {name: len(layers)})


def _check_layers(layers: Sequence[int], *, num_layers: int) -> None:
    text, ordered = (",".join(map(str, numbers)) for numbers in (layers, sorted(layers)))
    if outside := [index for index in layers if not 0 <= index < num_layers]:
        last = num_layers - 1
        raise UserError(f"--layers {text}: the teacher has no layer {outside[0]}; expected numbers from 0 to {last}")
    if repeated := [index for index in layers if layers.count(index) > 1]:
        raise UserError(f"--layers {text}: layer {repeated[0]} is named twice; name each layer once")
    if text != ordered:
        raise UserError(f"--layers {text}: not in ascending order; expected {ordered}")


def _spread(keep: int, *, num_layers: int) -> list[int]:
    if not 2 <= keep <= num_layers:
        raise UserError(f"--keep {keep}: expected a number from 2 to {num_layers}, the teacher's layers")
    gaps = keep - 1
    # Rounded half up in whole numbers: the same layers on every machine.
    return [(2 * index * (num_layers - 1) + gaps) // (2 * gaps) for index in range(keep)]


def _check_loadable(model: PreTrainedModel, *, name: str, trust_remote_code: bool) -> None:
    """Refuse a student whose weights differ from those that its configuration builds."""
    with torch.device("meta"):
        rebuilt = AutoModelForCausalLM.from_config(model.config, trust_remote_code=trust_remote_code)
    ours, theirs = ({(key, value.shape) for key, value in each.state_dict().items()} for each in (model, rebuilt))
    if ours != theirs:
        different, _ = min(ours ^ theirs)
        raise UserError(
            f"model {name}: without the other layers, {different} no longer fits its configuration;"
            " layers of this family depend on their index and cannot be pruned"
        )


def _describe_size(model: PreTrainedModel, *, num_layers: int) -> str:
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return f"{num_layers} layers, {model.num_parameters() / 1e6:,.1f} M parameters, {num_bytes / 1e6:,.1f} MB"
