"""The view of a model: padding on the right, and where its weights are loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    JambaConfig,
    MambaConfig,
    MixtralConfig,
    PretrainedConfig,
)

from kd.data.batch import SequenceBatch, TokenSequence
from kd.models.causal_lm import CausalLM, load_causal_lm, read_model_config
from kd.models.soft_prompt import SoftPrompt
from tests.tiny_models import FAMILIES, save_tiny_model, tiny_config

VOCABULARY, WIDTH, SLOTS = 60, 32, 3
LENGTHS = (19, 11, 2)
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 2, "initializer_range": 0.2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": WIDTH}


def configurations() -> dict[str, PretrainedConfig]:
    """The families of the other tests, and what a mask could mean more in: biases, states, experts, windows."""
    tested = {name: tiny_config(name, vocab_size=VOCABULARY, width=WIDTH, layers=2) for name in FAMILIES}
    return tested | {
        "bloom": BloomConfig(n_head=2, n_layer=2, **SHAPE),
        "mamba": MambaConfig(state_size=4, **SHAPE),
        "mixtral": MixtralConfig(num_local_experts=4, sliding_window=5, **SHAPE, **HEADS),
        "gemma3": Gemma3TextConfig(
            sliding_window=5, head_dim=8, layer_types=["sliding_attention", "full_attention"], **SHAPE, **HEADS
        ),
        "jamba": JambaConfig(
            attn_layer_period=2, attn_layer_offset=1, num_experts=2, use_mamba_kernels=False, **SHAPE, **HEADS
        ),
    }


HAS_CAUSAL_KERNEL = (*FAMILIES, "jamba")
"""Attention without biases, and without windows shorter than the rows."""


def collate(rows: list[np.ndarray]) -> SequenceBatch:
    sequences = [
        TokenSequence(row_id=index, prompt_ids=ids[:1], response_ids=ids[1:]) for index, ids in enumerate(rows)
    ]
    return SequenceBatch.collate(sequences, pad_id=VOCABULARY - 1, device=torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("name", configurations())
def test_padding_on_the_right_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has the hidden states that it has alone; with a soft prompt in front too."""
    torch.manual_seed(0)
    view = CausalLM.of(AutoModelForCausalLM.from_config(configurations()[name]).eval())
    soft_prompt = SoftPrompt(torch.randn(SLOTS, WIDTH))
    masks: list[Any] = []
    attend = functional.scaled_dot_product_attention

    def watched(*arguments: Any, attn_mask: Any = None, **options: Any) -> Any:
        masks.append(attn_mask)
        return attend(*arguments, attn_mask=attn_mask, **options)

    def hidden_states(batch: SequenceBatch) -> list[torch.Tensor]:
        embeds, mask = soft_prompt(view.embed(batch.input_ids), batch.attention_mask)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        plain = view.hidden_states(**inputs, has_padding=False).flatten(0, 1)
        prompted = view.hidden_states(inputs_embeds=embeds, attention_mask=mask, has_padding=False).flatten(0, 1)
        return [plain[batch.response_positions], prompted[batch.shifted_positions(SLOTS)]]

    random = np.random.default_rng(0)
    rows = [random.integers(0, VOCABULARY, length, dtype=np.int32) for length in LENGTHS]
    alone = [torch.cat(parts) for parts in zip(*(hidden_states(collate([row])) for row in rows), strict=True)]
    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    for together, expected in zip(hidden_states(collate(rows)), alone, strict=True):
        assert expected.std() > 0.1
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    if name in HAS_CAUSAL_KERNEL:
        assert masks and all(mask is None for mask in masks)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_go_from_the_files_to_the_ranks_device(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a copy on the host; a device without storage stands for a GPU."""
    path = str(save_tiny_model(tmp_path, family, seed=1))
    monkeypatch.setattr("kd.models.causal_lm._rank_device", lambda: torch.device("meta"))
    model = load_causal_lm(
        path,
        config=read_model_config(path, trust_remote_code=False),
        dtype="bf16",
        deepspeed_config={},
        keep_dropout=False,
        trust_remote_code=False,
    )
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}
