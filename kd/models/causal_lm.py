"""A family-agnostic view of a Hugging Face causal language model: embeddings in, hidden states out, a linear head."""

import inspect
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Cache, PretrainedConfig, PreTrainedModel, masking_utils
from transformers.integrations import HfDeepSpeedConfig

from kd.distributed import on_gpu
from kd.errors import UserError
from kd.losses.outputs import UNCHANGED, Head, LogitMap
from kd.models.adapter_folder import base_of, merge_adapter
from kd.models.checkpoint_files import check_tied_head
from kd.models.logits import logit_map
from kd.models.quantization import check_quantization, check_unquantized, is_quantized, settle_quantized
from kd.zero.config import Json, loading_config, zero_stage

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

_DROPOUT_NAME = re.compile(r"(drop|dropout|layerdrop|_pdrop)$")


@dataclass(frozen=True, kw_only=True, eq=False)
class CausalLM:
    """A causal language model seen through what all families have in common."""

    model: PreTrainedModel
    embedding_weight: nn.Parameter
    head_weight: nn.Parameter
    head_bias: nn.Parameter | None
    logit_map: LogitMap
    arguments: frozenset[str]
    """Names of what the body's forward pass takes."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "CausalLM":
        """The view of `model`; refers to the head's parameters without copies."""
        # transformers types both as any module.
        embeddings: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        return cls(
            model=model,
            embedding_weight=embeddings.weight,
            head_weight=head.weight,
            head_bias=getattr(head, "bias", None),
            logit_map=logit_map(model.config),
            arguments=frozenset(inspect.signature(model.base_model.forward).parameters),
        )

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        return [self.head_weight] if self.head_bias is None else [self.head_weight, self.head_bias]

    def head(self, *, vocabulary_size: int) -> Head:
        """The output head as it is now: under ZeRO-3 for a moment in which it is gathered."""
        return Head(
            weight=self.head_weight,
            bias=self.head_bias,
            vocabulary_size=vocabulary_size,
            logit_map=self.logit_map,
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [B, V_padded] of hidden states [B, H], by the model's own head; float32 where a map changes them."""
        values: Tensor = self.model.get_output_embeddings()(hidden)
        return values if self.logit_map == UNCHANGED else self.logit_map(values.float())

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings [B, T, H] of `input_ids` [B, T]."""
        return self.model.get_input_embeddings()(input_ids)  # type: ignore[no-any-return]

    def hidden_states(
        self,
        *,
        attention_mask: Tensor | None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        has_padding: bool = True,
    ) -> Tensor:
        """The last hidden states [B, T, H] of T new slots, which the head reads.

        Args:
            attention_mask: [B, cached + T], True on real slots; None if all are, or if sequences are packed.
            input_ids: [B, T], or `inputs_embeds` [B, T, H] instead.
            position_ids: [B, T]; needed with padding on the left, and for packed sequences, which they separate.
            cache: keys and values of earlier slots, and other states, extended in place.
            has_padding: False for a mask that is known to be True everywhere; then attention needs no mask.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
        inputs["attention_mask"] = None if attention_mask is None else attention_mask.long()
        if position_ids is not None and "position_ids" in self.arguments:
            inputs["position_ids"] = position_ids
        if "cache_params" not in self.arguments:
            inputs["past_key_values"] = cache
        else:
            # Families whose layers all keep a state instead of slots.
            inputs["cache_params"] = cache
            if attention_mask is not None:
                num_new = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]  # type: ignore[union-attr]
                inputs["attention_mask"] = attention_mask[:, -num_new:].long()
        with _known_padding(has_padding):
            output = self.model.base_model(use_cache=cache is not None, **inputs)
        return output.last_hidden_state  # type: ignore[no-any-return]


@contextmanager
def _known_padding(has_padding: bool) -> Iterator[None]:
    """Tell transformers whether masks have padding, which it would read from the device in every forward pass."""
    own = masking_utils.fast_all
    masking_utils.fast_all = lambda _: not has_padding  # type: ignore[assignment, return-value]
    try:
        yield
    finally:
        masking_utils.fast_all = own


def read_model_config(name: str, *, trust_remote_code: bool, attention: str = "auto") -> PretrainedConfig:
    """Read a checkpoint's config.json from a directory or the hub; that of its base for an adapter's folder.

    Every model that is made of it has `attention`, whatever config.json says: transformers' name of an implementation,
    or auto for transformers' choice for the family, which is sdpa where it is supported.

    Raises:
        UserError: there is none, it is quantized in a way that is not supported, or an adapter cannot be merged.
    """
    base = base_of(name)
    if base != name:
        name = f"{base} (base of the adapter {name})"
    # Unlike Path's methods, os.path has no error for names that the system refuses.
    if not os.path.isdir(base) and (base.startswith((".", "/", "~")) or base.count("/") > 1):
        # No hub model has such a name.
        raise UserError(f"model {name}: no such directory; give a from_pretrained directory or a hub name")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model {name}: no readable config.json ({reason[:200]}); give a from_pretrained directory"
        ) from None
    check_quantization(config, name=name, place=base)
    if base != name:
        check_unquantized(config, name=name, reason="an adapter's update cannot be added to quantized weights")
    set_attention(config, attention)
    return config


def set_attention(config: PretrainedConfig, attention: str) -> None:
    """Set `model.attention` of what is built from `config`, as in `read_model_config`."""
    config._attn_implementation = None if attention == "auto" else attention


def load_causal_lm(
    name: str,
    *,
    config: PretrainedConfig,
    dtype: str,
    deepspeed_config: Json,
    keep_dropout: bool,
    trust_remote_code: bool,
) -> PreTrainedModel:
    """Load a model for training: from the files to this rank's device, under ZeRO-3 directly into partitions.

    Args:
        name: from_pretrained directory, hub name, or an adapter's folder.
        config: its configuration from `read_model_config`, in which settings change, see `training_settings`.
        deepspeed_config: of the engine that the model will live in.
        keep_dropout: leave dropout probabilities as published, else set all of them to 0.

    Raises:
        UserError: the checkpoint cannot be read, does not hold all weights of the model, or holds a head that would be
            lost; or a package is missing.
    """
    set_for_training(config, keep_dropout=keep_dropout)
    partitioning = None
    device_map: dict[str, torch.device] | None = {"": _rank_device()}
    if zero_stage(deepspeed_config) == 3:
        device_map = None
        partitioning = HfDeepSpeedConfig(loading_config(deepspeed_config, dtype=dtype))
    try:
        model = _read_weights(
            base_of(name),
            config=config,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
    finally:
        # transformers partitions whatever is created while this object lives, inference copies included.
        del partitioning
    merge_adapter(model, name=name)
    if is_quantized(config):
        settle_quantized(model, dtype=DTYPES[dtype], name=name)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not keep_dropout:
            module.p = 0.0
        if isinstance(getattr(module, "experts", None), nn.ModuleList):
            # Imported here: other models need not wait for DeepSpeed.
            from deepspeed.utils import set_z3_leaf_module

            # Ranks run different experts of a list: ZeRO-3 must gather and reduce all of them with their router.
            set_z3_leaf_module(module, True)
    model.train()
    return model


def _rank_device() -> torch.device:
    # `start_world` has made this rank's GPU the current one.
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def _read_weights(
    name: str,
    *,
    config: PretrainedConfig,
    dtype: str,
    device_map: dict[str, torch.device] | None,
    trust_remote_code: bool,
) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=DTYPES[dtype],
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model {name}: a package is missing ({reason[:200]}); install it, or set model.attention=sdpa if it is for"
            " attention"
        ) from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        # The attention of its configuration, where the family does not have it.
        hint = "" if config._attn_implementation is None else ", and a family with this model.attention"
        raise UserError(
            f"model {name}: weights cannot be read ({reason[:300]}); expected safetensors files{hint}"
        ) from None
    model, report = loaded
    # transformers initialises missing weights at random and continues.
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    lacking = sorted((set(report["missing_keys"]) - tied) | {str(key) for key in report["mismatched_keys"]})
    if lacking:
        raise UserError(
            f"model {name}: the checkpoint lacks {len(lacking)} weights of the model ({', '.join(lacking[:3])} …);"
            " it is incomplete, or its config.json belongs to another model"
        )
    check_tied_head(model, name=name)
    return model  # type: ignore[no-any-return]


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in backward."""
    with warnings.catch_warnings():
        # The method's new name does not exist in all versions that this project supports.
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing_enable.*", category=FutureWarning)
        # The non-reentrant kind takes ZeRO-3's empty partitions for a mismatch between forward and recomputation.
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


def set_for_training(config: PretrainedConfig, *, keep_dropout: bool) -> None:
    """Change the settings of `training_settings` in a model's configuration."""
    for setting, value in training_settings(config).items():
        if value == "gelu_new":
            setattr(config, setting, "gelu_pytorch_tanh")
        elif not keep_dropout:
            # eval() would do the same and silently switch activation checkpointing off.
            setattr(config, setting, 0.0)


def training_settings(config: PretrainedConfig) -> dict[str, object]:
    """Settings of a model's configuration that training changes, with their values: an export restores them.

    These are dropout probabilities, and gelu_new, which computes GELU's tanh approximation in eight operations:
    gelu_pytorch_tanh is the same function in one kernel, which keeps one tensor for backward.
    """
    activations = {name: value for name, value in config.to_dict().items() if value == "gelu_new"}
    return {**dropout_settings(config), **activations}


def dropout_settings(config: PretrainedConfig) -> dict[str, float]:
    """Names and values of the dropout probabilities in a model's configuration."""
    values = config.to_dict()
    return {name: value for name, value in values.items() if _DROPOUT_NAME.search(name) and isinstance(value, float)}
