"""Tiny random models of several families, saved as checkpoints."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    OPTConfig,
    PretrainedConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.tiny_tokenizers import save_tiny_tokenizer

FAMILIES = ("gpt2", "opt", "llama", "gpt_neox")

STATE_FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {},
    "falcon_h1": {"num_key_value_heads": 2, "mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "head_dim": 16,
        **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "num_key_value_heads"), 2),
        **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "moe_intermediate_size"), 16),
        **dict.fromkeys(("num_experts", "num_experts_per_tok"), 2),
    },
}
"""Families whose layers keep states, with settings beside the usual sizes."""


def tiny_config(
    family: str, *, vocab_size: int, width: int, layers: int, heads: int = 2, **extra: Any
) -> PretrainedConfig:
    """A configuration with a few thousand parameters."""
    if family == "gpt2":
        return GPT2Config(vocab_size=vocab_size, n_embd=width, n_layer=layers, n_head=heads, n_positions=128, **extra)
    if family == "opt":
        return OPTConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            word_embed_proj_dim=width,
            ffn_dim=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=128,
            **extra,
        )
    return CONFIG_MAPPING[family](  # type: ignore[no-any-return]
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=128,
        **extra,
    )


def save_tiny_model(
    directory: Path, family: str, *, seed: int, width: int = 32, layers: int = 2, padding: int = 0, **extra: Any
) -> Path:
    """Save a random model with the tiny tokenizer; its head has `padding` entries more than the tokenizer."""
    save_tiny_tokenizer(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    torch.manual_seed(seed)
    config = tiny_config(
        family,
        vocab_size=len(tokenizer) + padding,
        width=width,
        layers=layers,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        # Larger than usual: differences between models must not drown in rounding.
        **({"init_std": 0.2} if family == "opt" else {"initializer_range": 0.2}),
        **extra,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory
