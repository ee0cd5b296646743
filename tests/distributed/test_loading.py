"""Models are partitioned while they are loaded: no rank ever holds a full one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed import loading_jobs, run_jobs
from tests.distributed.harness import write_config
from tests.run_on_ranks import Ranks
from tests.tiny_models import save_tiny_model

SHARDED = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "memory_efficient_linear": False},
}


def test_no_rank_holds_the_whole_model_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Freed memory goes back to the system at once, or the allocator's leftovers would be counted too.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    model = save_tiny_model(tmp_path / "model", "llama", seed=1, width=768, layers=16, tie_word_embeddings=False)
    weights = load_file(model / "model.safetensors")
    size = sum(tensor.nbytes for tensor in weights.values())
    assert size > 200e6, "too small to be seen beside everything else"
    pool = Ranks(2, fresh=True)
    try:
        results = pool.run(loading_jobs.peak_bytes_while_loading, model=model, deepspeed_config=SHARDED)
    finally:
        pool.stop()
    exact = int(sum(tensor.double().sum().item() for tensor in weights.values()) * 1000)
    for result in results:
        assert result["kept"] == pytest.approx(size / 2, rel=0.01)
        assert result["peak"] < 0.65 * size
        assert result["checksum"] == pytest.approx(exact, abs=10)


@pytest.mark.parametrize("stage", [0, 3])
@pytest.mark.parametrize("tie", [True, False])
def test_an_incomplete_checkpoint_is_refused(tmp_path: Path, ranks: Any, stage: int, tie: bool) -> None:
    """transformers would fill the gap with random numbers; a tied head is no gap."""
    for name in ("teacher", "student"):
        save_tiny_model(tmp_path / name, "llama", seed=1, tie_word_embeddings=tie)
    config = write_config(tmp_path, stage=stage)
    assert ranks(1).run(loading_jobs.load_student, config_file=config) == [None]
    file = tmp_path / "student" / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if "layers.1.mlp" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    (message,) = ranks(1).run(loading_jobs.load_student, config_file=config)
    assert "lacks 3 weights" in message and "layers.1.mlp.down_proj.weight" in message


def test_broken_and_foreign_weights_are_one_line(tmp_path: Path, ranks: Any) -> None:
    for name in ("teacher", "student"):
        save_tiny_model(tmp_path / name, "llama", seed=1)
    config = write_config(tmp_path, stage=0)
    file = tmp_path / "student" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    (message,) = ranks(1).run(loading_jobs.load_student, config_file=config)
    assert "weights cannot be read" in message and "\n" not in message
    save_tiny_model(tmp_path / "other", "llama", seed=1, width=48)
    file.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    (message,) = ranks(1).run(loading_jobs.load_student, config_file=config)
    assert message is not None and "\n" not in message


def test_a_teacher_offloaded_to_the_host_trains_the_same(tmp_path: Path, ranks: Any) -> None:
    """On a CPU the offload moves nothing, but its code runs, with the file that ships."""
    save_tiny_model(tmp_path / "teacher", "llama", seed=1)
    save_tiny_model(tmp_path / "student", "llama", seed=2)
    responses = tmp_path / "responses.jsonl"
    responses.write_text("".join(json.dumps({"prompt": f"Say {i}.", "response": f"{i}"}) + "\n" for i in range(8)))
    students = {}
    for name in ("zero3", "zero3_offload"):
        overrides = [
            "data.train=null",
            f"data.responses={responses}",
            f"engine.teacher=ds_configs/{name}.json",
            # As `auto` chooses for an offloaded teacher only: gradients are added in another order.
            "engine.gather=layer",
            f"run.dir={tmp_path / name}",
        ]
        assert ranks(2).run(run_jobs.run, config_file=write_config(tmp_path), overrides=overrides) == [None, None]
        students[name] = load_file(tmp_path / name / "final" / "model.safetensors")
    for key, value in students["zero3"].items():
        assert torch.equal(value, students["zero3_offload"][key]), key
