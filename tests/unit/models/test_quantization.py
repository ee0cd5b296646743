"""Quantized checkpoints that cannot be used are refused in one line, before anything is loaded."""

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kd.cli import make_student
from kd.errors import UserError
from kd.methods import load_config
from kd.models.causal_lm import load_causal_lm, read_model_config
from kd.models.vocabulary import share_vocabulary
from kd.plan.shapes import model_shapes
from tests.integration.tiny_run import write_tiny_config
from tests.tiny_models import save_tiny_model

FOUR_BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether bitsandbytes seems to be installed; a test may change it."""
    state, find = {"bitsandbytes": True}, importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        if name != "bitsandbytes":
            return find(name, package)
        return ModuleSpec(name, None) if state["bitsandbytes"] else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return state


def quantized(path: Path, *, settings: dict[str, Any] = FOUR_BITS) -> Path:
    """A model with the settings and the names, not the values, of quantized weights."""
    save_tiny_model(path, "llama", seed=1)
    weights = load_file(path / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4"] = torch.ones(1)
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": settings}))
    return path


def read(path: Path) -> None:
    read_model_config(str(path), trust_remote_code=False)


@pytest.mark.parametrize(
    "settings",
    [
        *({"quant_method": name, "bits": 4} for name in ("gptq", "awq")),
        {"quant_method": "bitsandbytes"},
        {"a": 1},
    ],
    ids=str,
)
def test_other_methods_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, method = quantized(tmp_path, settings=settings), settings.get("quant_method", "unknown method")
    with pytest.raises(UserError, match=rf"\({method}\); only bitsandbytes in 4 or 8 bits, fp8 and compressed"):
        read(model)


def test_a_missing_package_is_named(tmp_path: Path, installed: dict[str, bool]) -> None:
    model = quantized(tmp_path)
    read(model)
    installed["bitsandbytes"] = False
    with pytest.raises(UserError, match="and bitsandbytes is not installed; pip install bitsandbytes, or give"):
        read(model)


def test_weights_that_are_not_quantized_are_refused(tmp_path: Path) -> None:
    file = quantized(tmp_path) / "model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "nf4" not in key}, file, {"format": "pt"})
    with pytest.raises(UserError, match="but its weights are not quantized; remove quantization_config from"):
        read(tmp_path)


def test_teachers_in_fp8_are_dequantized(tmp_path: Path) -> None:
    """Blocks of 16 × 16 with a scale each, as DeepSeek-V3's of 128 × 128."""
    names = save_in_fp8(tmp_path, block=16)
    settings = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    assert_dequantized(tmp_path, settings, names, scale_of=lambda stored, name: _grow(stored[f"{name}_scale_inv"], 16))


def test_teachers_of_compressed_tensors_are_dequantized(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors (extra quantized)")
    names = save_in_fp8(tmp_path, block=None)
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    assert_dequantized(tmp_path, settings, names, scale_of=lambda stored, name: stored[f"{name}_scale"])


def save_in_fp8(directory: Path, *, block: int | None) -> list[str]:
    """A model whose linear layers are stored in fp8 with scales, of blocks or of rows; the names of their weights."""
    save_tiny_model(directory, "llama", seed=1)
    stored = load_file(directory / "model.safetensors")
    names = [name for name in stored if "_proj." in name]
    for name in names:
        weight = stored[name]
        scale = torch.rand(len(weight), 1) + 0.5
        if block is not None:
            scale = torch.rand(len(weight) // block, weight.shape[1] // block) + 0.5
        stored[name] = (weight / (scale if block is None else _grow(scale, block))).to(torch.float8_e4m3fn)
        stored[f"{name}_scale" if block is None else f"{name}_scale_inv"] = scale
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    return names


def assert_dequantized(directory: Path, settings: dict[str, Any], names: list[str], *, scale_of: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    stored = load_file(directory / "model.safetensors")
    model = load_causal_lm(
        str(directory),
        config=read_model_config(str(directory), trust_remote_code=False),
        dtype="fp32",
        deepspeed_config={},
        keep_dropout=False,
        trust_remote_code=False,
    )
    weights = dict(model.named_parameters())
    assert len(names) == 14 and {weight.dtype for weight in weights.values()} == {torch.float32}
    for name in names:
        torch.testing.assert_close(weights[name].detach(), stored[name].float() * scale_of(stored, name))
    ids = torch.tensor([[1, 2, 3]])
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embeds).logits.sum().backward()
    assert embeds.grad is not None and embeds.grad.abs().max() > 0


def _grow(scale: torch.Tensor, block: int) -> torch.Tensor:
    return scale.repeat_interleave(block, dim=0).repeat_interleave(block, dim=1)


def test_packed_floats_are_refused(tmp_path: Path) -> None:
    model = quantized(tmp_path, settings={**FOUR_BITS, "bnb_4bit_quant_storage": "bfloat16"})
    with pytest.raises(UserError, match="with bnb_4bit_quant_storage, which is not uint8"):
        read(model)


def test_only_a_teacher_that_is_not_partitioned_is_quantized(tmp_path: Path) -> None:
    quantized(tmp_path / "teacher")
    save_tiny_model(tmp_path / "student", "llama", seed=2)

    def share(*, stage: int, student: str = "student") -> None:
        names = {"teacher": str(tmp_path / "teacher"), "student": str(tmp_path / student), "dtype": "fp32"}
        engine = {"teacher": f"ds_configs/zero{stage}.json"}
        share_vocabulary(load_config(write_tiny_config(tmp_path, model=names, engine=engine)))

    share(stage=0)
    with pytest.raises(UserError, match=r"zero3.json would partition it, which is not supported; set engine.teacher="):
        share(stage=3)
    with pytest.raises(UserError, match="teacher: is quantized, but the student's weights are trained; give the"):
        share(stage=0, student="teacher")


def test_commands_that_need_the_values_refuse_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = quantized(tmp_path / "teacher")
    assert make_student(["--teacher", str(model), "--keep", "2", "--out", str(tmp_path / "out")]) == 2
    assert "is quantized, but a student of some of its layers would be trained; give" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is quantized, but a plan counts weights of model.dtype"):
        model_shapes(str(model), trust_remote_code=False)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(model)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.safetensors").touch()
    with pytest.raises(UserError, match="is quantized, but an adapter's update cannot be added to quantized weights"):
        read(adapter)
