"""PromptKD with bf16 weights: close to fp32 under every ZeRO stage, with a prompt that is fp32 throughout."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import harness, promptkd_jobs
from tests.distributed.harness import make_batches, write_config
from tests.tiny_models import save_tiny_model


@pytest.fixture(scope="module")
def llama_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama_pair")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=48, layers=3, tie_word_embeddings=False)
    save_tiny_model(directory / "student", "llama", seed=2, width=32, layers=2, tie_word_embeddings=True)
    return directory


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_runs_under_every_zero_stage(llama_pair: Path, ranks: Any, stage: int) -> None:
    """Close to the fp32 update: all that differs is the rounding of bf16 weights and activations."""
    batches = make_batches(vocabulary=400, seed=5)[:1]
    updates = {}
    for dtype in ("bf16", "fp32"):
        config = write_config(llama_pair, stage=stage, dtype=dtype)
        # A step that is large beside the rounding of bf16 weights, through which it is seen.
        overrides = ["optimizer.learning_rate=10.0"]
        (result, _) = ranks(2).run(harness.train, config_file=config, overrides=overrides, batches=batches)
        name = "model.embed_tokens.weight"
        updates[dtype] = result["after"]["student"][name] - result["before"]["student"][name]
    assert updates["fp32"].abs().max() >= 1e-3
    # These random models amplify rounding (about 0.2); a scale wrong by a factor of two is off by 0.5 or 1.
    assert (updates["bf16"] - updates["fp32"]).norm() < 0.35 * updates["fp32"].norm()


@pytest.mark.parametrize(("stage", "teacher_stage"), [(0, 0), (1, 3), (2, 3), (3, 3)])
def test_fp16_updates_are_those_of_fp32(llama_pair: Path, ranks: Any, stage: int, teacher_stage: int) -> None:
    """Under every ZeRO stage the loss is scaled as much as the gradient is divided."""
    batches = make_batches(vocabulary=400, seed=5)[:1]
    updates = {}
    for dtype in ("fp16", "fp32"):
        config = write_config(llama_pair, stage=stage, teacher_stage=teacher_stage, dtype=dtype)
        overrides = ["optimizer.learning_rate=10.0"]
        (result, _) = ranks(2).run(
            promptkd_jobs.train_in_half, config_file=config, overrides=overrides, batches=batches
        )
        name = "model.embed_tokens.weight"
        updates["student", dtype] = result["after"]["student"][name] - result["before"]["student"][name]
        updates["prompt", dtype] = result["prompt_after"] - result["prompt_before"]
        assert result["skipped"] == ({"skipped_updates": 0, "prompt_skipped_updates": 0} if dtype == "fp16" else {})
    for part in ("student", "prompt"):
        wanted = updates[part, "fp32"]
        assert wanted.abs().max() >= 1e-3
        # Rounding leaves a few percent; without the loss scale, nothing would be left of the update.
        assert (updates[part, "fp16"] - wanted).norm() < 0.1 * wanted.norm(), part


def test_an_update_that_overflows_in_fp16_is_skipped_and_counted(llama_pair: Path, ranks: Any) -> None:
    batches = make_batches(vocabulary=400, seed=5)[:1]
    config = write_config(llama_pair, dtype="fp16")
    (result, _) = ranks(2).run(
        promptkd_jobs.train_in_half, config_file=config, overrides=[], batches=batches, loss_scale_power=30
    )
    assert result["skipped"] == {"skipped_updates": 1, "prompt_skipped_updates": 1}
    assert torch.equal(result["prompt_before"], result["prompt_after"])


def test_the_prompt_stays_fp32_beside_bf16_weights(llama_pair: Path, ranks: Any) -> None:
    batches = make_batches(vocabulary=400, seed=4)
    config = write_config(llama_pair, dtype="bf16")
    # So small that adding it to a bf16 number would change nothing.
    results = ranks(2).run(
        harness.train,
        config_file=config,
        overrides=["prompt.learning_rate=1.0e-4"],
        batches=batches[:1],
    )
    update = results[0]["prompt_after"] - results[0]["prompt_before"]
    assert 0 < update.abs().max() < 1e-3
    exact, _ = ranks(2).run(
        harness.train,
        config_file=write_config(llama_pair, dtype="fp32"),
        overrides=["prompt.learning_rate=1.0e-4"],
        batches=batches[:1],
    )
    wanted = exact["prompt_after"] - exact["prompt_before"]
    # Only the rounding of bf16 activations is left; a bf16 prompt would not have moved at all.
    assert (update - wanted).norm() < 0.1 * wanted.norm()
    assert torch.equal(results[0]["prompt_after"], results[1]["prompt_after"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_the_first_update_allocates_is_known_before(llama_pair: Path, ranks: Any, stage: int) -> None:
    config = write_config(llama_pair, stage=stage, dtype="bf16")
    batches = make_batches(vocabulary=400)[:1]
    for expected, allocated in ranks(2).run(promptkd_jobs.optimizer_state_bytes, config_file=config, batches=batches):
        # Partitions are padded.
        assert expected == pytest.approx(allocated, rel=0.02)
        assert allocated > 0


def test_rollouts_leave_room_for_both_models_that_are_gathered_once(llama_pair: Path, ranks: Any) -> None:
    config = write_config(llama_pair, dtype="bf16")
    layer, whole = (
        ranks(2).run(promptkd_jobs.reserved_bytes, config_file=config, gather=gather)[0]
        for gather in ("layer", "model")
    )
    # Only the first optimizer step's memory, or that and both models.
    assert layer[0] > 0
    assert whole[0] - layer[0] == whole[1]


def test_the_prompts_gradient_is_reduced_in_fp32(llama_pair: Path, ranks: Any) -> None:
    """Row by row the bf16 passes are the same on one rank and on two; only the reduction differs."""
    batches = make_batches(vocabulary=400, seed=6)[:1]
    config = write_config(llama_pair, dtype="bf16", micro_batch=1)
    moved = []
    for num_ranks in (1, 2):
        result = ranks(num_ranks).run(harness.train, config_file=config, overrides=[], batches=batches)[0]
        moved.append(result["prompt_after"] - result["prompt_before"])
    # A reduction in bf16 would leave about 4e-3.
    assert (moved[0] - moved[1]).norm() < 1e-4 * moved[0].norm()
