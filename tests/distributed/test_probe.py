"""The numeric probe under ZeRO: every rank refuses a model that one rank finds wrong, and right ones train."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.distributed import run_jobs as jobs
from tests.distributed.harness import write_config
from tests.tiny_models import save_tiny_model


def save_pair(directory: Path, family: str) -> Path:
    for seed, role in enumerate(("teacher", "student")):
        save_tiny_model(directory / role, family, seed=seed)
    return directory


def overrides(directory: Path) -> list[str]:
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": f"{n}"}) + "\n" for n in range(8)))
    data = [f"data.train={rows}", "data.template=plain", "generation.max_new_tokens=8"]
    return [*data, f"run.dir={directory / 'run'}"]


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_weight_that_is_not_finite_ends_all_ranks(tmp_path: Path, ranks: Any, role: str, stage: int) -> None:
    pair = save_pair(tmp_path, "llama")
    path = pair / role / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.1.self_attn.o_proj.weight"
    # In the last partition, which the first rank does not hold.
    weights[name][-1, -1] = float("nan")
    save_file(weights, path, {"format": "pt"})
    config = write_config(pair, stage=stage, teacher_stage=stage)
    messages = ranks(2).run(jobs.run, config_file=config, overrides=overrides(tmp_path))
    assert messages[0] == messages[1]
    assert f"{role}: {name} has values that are NaN or infinite; expected finite weights" in messages[0]


def test_packing_is_refused_for_a_family_with_masks_of_its_own(tmp_path: Path, ranks: Any) -> None:
    config = write_config(save_pair(tmp_path, "opt"))
    packing = ["schedule.micro_tokens=64", "schedule.packing=true"]
    messages = ranks(2).run(jobs.run, config_file=config, overrides=overrides(tmp_path) + packing)
    assert messages[0] == messages[1]
    assert "packed sequences give other hidden states than padded ones; set schedule.packing=false" in messages[0]
