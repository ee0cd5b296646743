"""Directories that transformers would read in silence, or refuse without a clear line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel

from kd.errors import UserError
from kd.models.causal_lm import load_causal_lm, read_model_config
from kd.models.vocabulary import check_model
from tests.tiny_models import save_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", "llama", seed=1)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(name: Path, *, attention: str = "auto") -> PreTrainedModel:
    config = read_model_config(str(name), trust_remote_code=False)
    return load_causal_lm(
        str(name),
        config=config,
        dtype="fp32",
        deepspeed_config={},
        keep_dropout=False,
        attention=attention,
        trust_remote_code=False,
    )


@pytest.mark.parametrize("settings", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "bitsandbytes"}, {"a": 1}])
def test_quantized_weights_are_refused(model: Path, settings: dict[str, Any]) -> None:
    edit(model / "config.json", quantization_config=settings)
    method = settings.get("quant_method", "unknown method")
    with pytest.raises(UserError, match=rf"has a quantization_config \({method}\); quantized models are not supported"):
        load(model)


def test_a_head_that_tying_would_lose_is_refused(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "tied", "gpt2", seed=1)
    path = model / "model.safetensors"
    weights = load_file(path)
    # The same head is only redundant.
    save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}, path, {"format": "pt"})
    load(model)
    save_file(weights | {"lm_head.weight": weights["transformer.wte.weight"] + 1}, path, {"format": "pt"})
    with pytest.raises(UserError, match="says tie_word_embeddings, but the checkpoint has an output head of its own"):
        load(model)


def test_the_configured_attention_is_used(model: Path) -> None:
    for attention in ("eager", "sdpa"):
        assert load(model, attention=attention).config._attn_implementation == attention


def test_attention_that_is_not_installed_is_one_line(model: Path) -> None:
    edit(model / "config.json", attn_implementation="flash_attention_2")
    if torch.cuda.is_available():
        pytest.skip("flash attention may be installed beside a GPU")
    with pytest.raises(UserError, match=r"a package is missing \(.*; install it, or set model.attention=sdpa"):
        load(model, attention="flash_attention_2")
    assert load(model, attention="sdpa").config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["n_positions", "max_seq_len", "n_ctx"])
def test_positions_have_several_names(name: str) -> None:
    config = PretrainedConfig(vocab_size=400, **{name: 50})
    check_model(config, name="m", vocabulary=400, longest=50)
    with pytest.raises(UserError, match="model m: has 50 positions, the longest sequence .* needs 51"):
        check_model(config, name="m", vocabulary=400, longest=51)
