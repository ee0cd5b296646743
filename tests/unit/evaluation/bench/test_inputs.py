"""Random checkpoints and rows of a measurement."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.bench import inputs
from evaluation.bench.axes import AXES, BASE
from evaluation.bench.inputs import write_inputs, write_random_checkpoint
from evaluation.bench.presets import PRESETS
from tests.tiny_models import FAMILIES, tiny_config


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_checkpoint_has_all_weights_of_the_model(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "FILE_BYTES", 10_000)
    config = tiny_config(family, vocab_size=64, width=32, layers=2)
    write_random_checkpoint(tmp_path, config, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(1))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        spread = parameter.float().std().item()
        if parameter.ndim == 2:
            assert 0.015 < spread < 0.025, name
        else:
            assert spread == 0, name


def test_rows_have_the_lengths_of_the_preset(tmp_path: Path) -> None:
    preset = PRESETS["tiny"]
    write_inputs(tmp_path, preset, seed=3, device=torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer.eos_token_id == preset.end_id == preset.model_config("student").eos_token_id
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    lengths = {len(tokenizer(row["instruction"])["input_ids"]) for row in rows}
    assert lengths == set(range(preset.prompt_tokens[0], preset.prompt_tokens[1] + 1))
    assert {len(tokenizer(row["output"])["input_ids"]) for row in rows} == {preset.new_tokens - 1}
    assert preset.end_id not in {index for row in rows for index in tokenizer(row["output"])["input_ids"]}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_describe_models_that_exist(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        sizes = {
            role: AutoModelForCausalLM.from_config(preset.model_config(role)).num_parameters()
            for role in ("teacher", "student")
        }
    billions = {"gpu-1": (6.7, 1.1), "paper-opt": (12.9, 1.3), "paper-llama": (13.0, 6.7), "paper-table3": (12.9, 6.7)}
    if name in billions:
        assert (round(sizes["teacher"] / 1e9, 1), round(sizes["student"] / 1e9, 1)) == billions[name]
    if preset.num_ranks is not None:
        # The paper's batch for OPT and Llama.
        assert preset.num_ranks * preset.micro_batch * preset.micro_batches == 64


def test_an_axis_changes_one_size() -> None:
    changed = {axis.name: axis.preset(axis.values[-1]) for axis in AXES}
    assert changed["sequence"] == replace(BASE, new_tokens=224)
    assert changed["sequence"].longest == AXES[0].values[-1]
    assert changed["batch"] == replace(BASE, micro_batches=6)
    assert changed["vocabulary"] == replace(BASE, vocabulary=AXES[2].values[-1])
    assert changed["prompt"] == replace(BASE, soft_prompt_tokens=AXES[3].values[-1])
    assert all(BASE in [axis.preset(value) for value in axis.values] for axis in AXES)
