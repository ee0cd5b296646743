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
from kd.models.causal_lm import read_model_config
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
        *({"quant_method": name, "bits": 4} for name in ("gptq", "awq", "compressed-tensors", "fp8")),
        {"quant_method": "bitsandbytes"},
        {"a": 1},
    ],
    ids=str,
)
def test_other_methods_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    model, method = quantized(tmp_path, settings=settings), settings.get("quant_method", "unknown method")
    with pytest.raises(UserError, match=rf"\({method}\); only bitsandbytes in 4 or 8 bits is supported; give the"):
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
