"""Directories that transformers would read in silence, or refuse without a clear line."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel

from evaluation.models import find_models
from evaluation.settings import Loading
from kd.distributed import World
from kd.errors import UserError
from kd.models.causal_lm import load_causal_lm, read_model_config
from kd.models.vocabulary import check_model
from kd.plan.passes import FakeModel
from kd.plan.shapes import model_shapes
from kd.rollout.inference_copy import blank_copy
from tests.tiny_models import save_tiny_model

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
FLASH_IS_INSTALLED = any(importlib.util.find_spec(name) is not None for name in ("flash_attn", "kernels"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model", "llama", seed=1)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(name: Path, *, attention: str = "auto") -> PreTrainedModel:
    config = read_model_config(str(name), trust_remote_code=False, attention=attention)
    return load_causal_lm(
        str(name),
        config=config,
        dtype="fp32",
        deepspeed_config={},
        keep_dropout=False,
        trust_remote_code=False,
    )


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


@pytest.mark.parametrize("published", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("attention", ["auto", "eager", "sdpa"])
def test_the_configured_attention_wins(model: Path, published: str, attention: str) -> None:
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        edit(model / "config.json", **{key: published})
    expected = "sdpa" if attention == "auto" else attention
    loaded = load(model, attention=attention)
    assert loaded.config._attn_implementation == blank_copy(loaded).config._attn_implementation == expected
    shapes = model_shapes(str(model), trust_remote_code=False)
    fake = FakeModel(shapes, name="m", dtype="fp32", checkpointing=False, trust_remote_code=False, attention=attention)
    assert fake.model.config._attn_implementation == expected
    models = find_models([str(model)], loading=Loading(attention=attention), world=ALONE)  # type: ignore[arg-type]
    assert models.load(str(model)).view.model.config._attn_implementation == expected


def test_a_family_without_sdpa_has_eager_attention(tmp_path: Path) -> None:
    bloom = save_tiny_model(tmp_path / "bloom", "bloom", seed=1)
    assert load(bloom).config._attn_implementation == "eager"
    with pytest.raises(UserError, match="does not support an attention .*, and a family with this model.attention"):
        load(bloom, attention="sdpa")


@pytest.mark.skipif(FLASH_IS_INSTALLED, reason="flash attention is installed")
def test_attention_that_is_not_installed_is_one_line(model: Path) -> None:
    with pytest.raises(UserError, match=r"a package is missing \(.*; install it, or set model.attention=sdpa"):
        load(model, attention="flash_attention_2")
    models = find_models([str(model)], loading=Loading(attention="flash_attention_2"), world=ALONE)
    with pytest.raises(UserError, match=r"a package is missing \("):
        models.load(str(model))


@pytest.mark.parametrize("name", ["n_positions", "max_seq_len", "n_ctx"])
def test_positions_have_several_names(name: str) -> None:
    config = PretrainedConfig(vocab_size=400, **{name: 50})
    check_model(config, name="m", vocabulary=400, longest=50)
    with pytest.raises(UserError, match="model m: has 50 positions, the longest sequence .* needs 51"):
        check_model(config, name="m", vocabulary=400, longest=51)
