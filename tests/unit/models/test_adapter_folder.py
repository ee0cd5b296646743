"""An adapter's folder is its base with peft's own merge, or is refused in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from kd.errors import UserError
from kd.models.adapter_folder import describe_adapter
from kd.models.causal_lm import load_causal_lm, read_model_config
from kd.models.vocabulary import load_tokenizer, read_ends
from kd.plan.shapes import model_shapes
from tests.tiny_models import FAMILIES, save_tiny_model

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": "all-linear"},
    "rslora": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"up_proj|c_fc|fc1|dense_h_to_4h": 2},
        "alpha_pattern": {"down_proj|mlp.c_proj|fc2|dense_4h_to_h": 40},
    },
}


def save_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """A random adapter of `base`, saved by peft."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **settings))
    torch.manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    # With it, peft would also save an adapted head itself.
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def load(name: Path, *, dtype: str = "fp32") -> PreTrainedModel:
    return load_causal_lm(
        str(name),
        config=read_model_config(str(name), trust_remote_code=False),
        dtype=dtype,
        deepspeed_config={},
        keep_dropout=False,
        trust_remote_code=False,
    )


def merged_by_peft(base: Path, folder: Path, *, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    adapted: Any = peft.PeftModel.from_pretrained(model.float(), folder)
    merged: dict[str, torch.Tensor] = adapted.merge_and_unload().to(dtype).state_dict()
    return merged


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base", "llama", seed=1)


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return save_adapter(base, tmp_path / "adapter")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_weights_are_those_that_peft_merges(tmp_path: Path, family: str, settings: str, dtype: str) -> None:
    base = save_tiny_model(tmp_path / "base", family, seed=1)
    folder = save_adapter(base, tmp_path / "adapter", **SETTINGS[settings])
    model, plain = load(folder, dtype=dtype), load(base, dtype=dtype)
    expected = merged_by_peft(base, folder, dtype=model.dtype)
    found = model.state_dict()
    assert found.keys() == expected.keys() == plain.state_dict().keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6 if dtype == "fp32" else 0, rtol=0)
    changed = [name for name, value in plain.state_dict().items() if not torch.equal(value, found[name])]
    assert len(changed) >= 8
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "peft_config")


def test_scales_and_ranks_of_the_settings_differ(base: Path, tmp_path: Path) -> None:
    """Else the test above could not tell them apart."""
    merged = [
        merged_by_peft(base, save_adapter(base, tmp_path / name, **settings)) for name, settings in SETTINGS.items()
    ]
    up, down = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("up", "down"))
    assert not torch.equal(merged[0][up], merged[2][up]) and not torch.equal(merged[0][down], merged[2][down])
    assert not torch.equal(merged[0][up], merged[1][up])


def test_the_tokenizer_is_the_folders_own_or_the_bases(base: Path, adapter: Path) -> None:
    assert (
        load_tokenizer(str(adapter), trust_remote_code=False).get_vocab()
        == AutoTokenizer.from_pretrained(base).get_vocab()
    )
    own = AutoTokenizer.from_pretrained(base)
    own.add_tokens(["<own>"])
    own.save_pretrained(adapter)
    assert "<own>" in load_tokenizer(str(adapter), trust_remote_code=False).get_vocab()


def test_it_has_the_bases_configuration_and_end_tokens(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_model_config(str(adapter), trust_remote_code=False)
    assert config.hidden_size == model_shapes(str(adapter), trust_remote_code=False).hidden_size == 32
    assert read_ends(str(adapter), config=config) == read_ends(str(base), config=config) != set()
    assert describe_adapter(str(adapter)) == [f"{adapter} is a LoRA adapter, merged into the weights of {base}"]
    assert describe_adapter(str(base)) == describe_adapter(None) == []
    # As training writes it, with the names of its command.
    edit(adapter, base_model_name_or_path="base")
    monkeypatch.chdir(tmp_path)
    load(Path("adapter"))


def edit(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, **values: torch.Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    tensors: dict[str, Any] = load_file(path) | values
    save_file({name: value for name, value in tensors.items() if value is not None}, path, {"format": "pt"})


KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
REFUSED_SETTINGS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"peft_type": "LOHA"}, "has peft_type LOHA, expected LORA; merge it into its base model with peft"),
    ({"use_dora": True}, "has use_dora=true; only plain LoRA is merged here; merge it"),
    ({"modules_to_save": ["lm_head"]}, r'has modules_to_save=\["lm_head"\]; only'),
    ({"bias": "lora_only"}, 'has bias="lora_only"; only'),
    ({"trainable_token_indices": [1, 2]}, r"has trainable_token_indices=\[1, 2\]; only"),
    ({"layer_replication": [[0, 1], [0, 2]]}, "has layer_replication="),
    ({"init_lora_weights": "pissa"}, 'has init_lora_weights="pissa"; only'),
    ({"of_another_version": 1}, "has of_another_version=1; only"),
    ({"base_model_name_or_path": None}, "expected the base model in base_model_name_or_path .*, found none; set it"),
    ({"base_model_name_or_path": "/no/where"}, r"/no/where \(base of the adapter .*adapter\): no such directory; give"),
    ({"r": 3}, r"has \[4, 32\] for .*lora_A.weight, expected shape \[3, 32\]; the base model or"),
    ({"target_modules": ["nothing"]}, "its adapter does not fit .*base .*; set base_model_name_or_path in"),
    ({"target_modules": ["q_proj"]}, "has .*v_proj.lora_A.weight, which is no LoRA matrix of a layer that"),
    ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "has nothing for .*o_proj.lora_A.weight, expected shape"),
    ({"r": "many"}, "its adapter does not fit"),
)


@pytest.mark.parametrize(("settings", "message"), REFUSED_SETTINGS, ids=[str(values) for values, _ in REFUSED_SETTINGS])
def test_settings_that_cannot_be_merged_are_refused(adapter: Path, settings: dict[str, Any], message: str) -> None:
    edit(adapter, **settings)
    with pytest.raises(UserError, match=message) as caught:
        load(adapter)
    assert "\n" not in str(caught.value)


def test_settings_without_effect_are_accepted(base: Path, adapter: Path) -> None:
    expected = merged_by_peft(base, adapter)
    edit(adapter, lora_dropout=0.5, of_another_version=None, init_lora_weights="gaussian", inference_mode=False)
    for name, value in load(adapter).state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)


def test_broken_files_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    edit_weights(adapter, **{KEY: torch.ones(4, 31)})
    with pytest.raises(UserError, match=r"has \[4, 31\] for .*layers.1.self_attn.q_proj.lora_A.weight, expected shape"):
        load(adapter)
    edit_weights(adapter, **{KEY: None})
    with pytest.raises(UserError, match="has nothing for .*layers.1.self_attn.q_proj.lora_A.weight"):
        load(adapter)
    edit_weights(adapter, **{KEY: torch.ones(4, 32), "base_model.model.lm_head.weight": torch.ones(3, 3)})
    with pytest.raises(UserError, match="has base_model.model.lm_head.weight, which is no LoRA matrix of a layer"):
        load(adapter)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="adapter_model.safetensors cannot be read .*; save the adapter again"):
        load(adapter)
    file.unlink()
    with pytest.raises(UserError, match="has adapter_config.json, but no adapter_model.safetensors; save"):
        load(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json cannot be read"):
        load(adapter)
    shutil.copyfile(base / "config.json", adapter / "config.json")
    with pytest.raises(UserError, match=r"adapter_config.json lies beside the model; merge the adapter with peft, or"):
        load(adapter)
    nested = save_adapter(base, tmp_path / "nested")
    edit(nested, base_model_name_or_path=str(adapter))
    with pytest.raises(UserError, match="found .*adapter, an adapter too; set it to the model"):
        load(nested)


def test_embeddings_and_a_tied_head_are_refused(base: Path, tmp_path: Path) -> None:
    embeddings = save_adapter(base, tmp_path / "embeddings", target_modules=["embed_tokens"])
    with pytest.raises(UserError, match="changes model.embed_tokens, which .*; merge it into its base model"):
        load(embeddings)
    tied = save_tiny_model(tmp_path / "tied", "llama", seed=1, tie_word_embeddings=True)
    folders = [save_adapter(path, tmp_path / f"head-{path.name}", target_modules=["lm_head"]) for path in (base, tied)]
    expected = merged_by_peft(base, folders[0])["lm_head.weight"]
    torch.testing.assert_close(load(folders[0]).state_dict()["lm_head.weight"], expected, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="changes lm_head, which shares the embeddings' weight; merge it"):
        load(folders[1])
