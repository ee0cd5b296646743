"""Random inputs of a measurement: rows of known lengths, and models of the sizes that the presets name."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluation.bench.inputs import write_inputs
from evaluation.bench.presets import PRESETS


def test_rows_have_the_presets_lengths(tmp_path: Path) -> None:
    preset = PRESETS["tiny"]
    write_inputs(tmp_path, preset, device=torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    prompts, responses = ([tokenizer(row[name])["input_ids"] for row in rows] for name in ("instruction", "output"))
    assert {len(ids) for ids in prompts} == set(range(preset.prompt_tokens[0], preset.prompt_tokens[1] + 1))
    # The reader appends the end token.
    assert {len(ids) for ids in responses} == {preset.new_tokens - 1}
    assert tokenizer.eos_token_id == preset.end_id
    assert all(preset.end_id not in ids for ids in (*prompts, *responses))


@pytest.mark.parametrize(
    ("name", "teacher", "student"),
    [
        ("gpu-1", 6.7, 1.1),
        ("gpu-gpt2", 1.56, 0.124),
        ("gpu-opt", 6.7, 1.3),
        ("paper-opt", 12.9, 1.3),
        ("paper-llama", 13.0, 6.7),
        ("paper-table3", 12.9, 6.7),
    ],
)
def test_models_have_the_sizes_that_a_preset_stands_for(name: str, teacher: float, student: float) -> None:
    for role, billions in (("teacher", teacher), ("student", student)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(PRESETS[name].model_config(role))
        assert model.num_parameters() / 1e9 == pytest.approx(billions, rel=0.1)
