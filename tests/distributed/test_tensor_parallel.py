"""Groups of ranks that share an inference copy sample what one rank with a full copy samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.distributed import generation_jobs as jobs
from tests.distributed import inference_copy_jobs
from tests.distributed.harness import write_config
from tests.distributed.test_loading import SHARDED
from tests.run_on_ranks import Ranks
from tests.tiny_models import save_tiny_model

# Uneven shares of the ranks, and a prompt of one token.
PROMPTS = [np.random.default_rng(row).integers(1, 400, 1 + 3 * row).tolist() for row in range(7)]
TWO = ["generation.layout=tensor_parallel", "generation.tensor_parallel_size=2"]
GATHERED = ["generation.layout=gathered"]
GREEDY = ["generation.top_k=1"]


def save_pair(directory: Path, family: str) -> Path:
    """Teacher and student with four heads, in Llama two of keys and values, and with biases."""
    extra = {"num_key_value_heads": 2} if family == "llama" else {}
    for name, seed, padding in (("teacher", 1, 0), ("student", 2, 30)):
        save_tiny_model(directory / name, family, seed=seed, padding=padding, heads=4, **extra)
    # New models have biases of 0, which could be added any number of times.
    file = directory / "student" / "model.safetensors"
    weights = load_file(file)
    for name, values in weights.items():
        if name.endswith("bias"):
            values.normal_(std=0.2)
    save_file(weights, file, metadata={"format": "pt"})
    return write_config(directory)


def merged(results: list[Any], key: str) -> Any:
    return {row: value for result in results for row, value in result[key].items()}


@pytest.fixture(scope="module", params=["llama", "opt", "gpt_neox"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pair(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("choosing", [GREEDY, []], ids=["greedy", "sampled"])
def test_a_shared_copy_samples_what_a_full_one_samples(family: Path, ranks: Any, choosing: list[str]) -> None:
    whole, shared = (
        ranks(2).run(jobs.describe, config_file=family, overrides=layout + choosing, prompts=PROMPTS)
        for layout in (GATHERED, TWO)
    )
    assert merged(shared, "responses") == merged(whole, "responses")
    assert all("a copy of the student on each group of 2 ranks" in result["sentence"] for result in shared)
    for result, other in zip(shared, whole, strict=True):
        assert result["group"] == (0, 1)
        assert result["held"] < 0.85 * other["held"] == 0.85 * result["whole"]
        for row, states in other["hidden"].items():
            np.testing.assert_allclose(result["hidden"][row], states, rtol=0, atol=1e-5)


def test_a_rank_keeps_the_hidden_states_of_its_own_rows_only(tmp_path: Path, ranks: Any) -> None:
    config = save_pair(tmp_path, "opt")
    results = ranks(2).run(jobs.describe, config_file=config, overrides=TWO, prompts=PROMPTS)
    for rank, result in enumerate(results):
        assert set(result["hidden"]) == set(result["responses"]) == set(range(len(PROMPTS))[rank::2])
        for row, states in result["hidden"].items():
            assert len(states) == len(result["responses"][row])
            assert result["hidden_storage"][row] == np.array(states, dtype=np.float32).nbytes


def test_groups_smaller_than_the_world(tmp_path: Path, ranks: Any) -> None:
    for family in ("llama", "opt"):
        config = save_pair(tmp_path / family, family)
        (alone,) = ranks(1).run(jobs.sample, config_file=config, overrides=GREEDY, prompts=PROMPTS, steps=[1])
        results = ranks(4).run(jobs.describe, config_file=config, overrides=TWO + GREEDY, prompts=PROMPTS)
        assert [result["group"] for result in results] == [(0, 1), (0, 1), (2, 3), (2, 3)]
        assert merged(results, "responses") == alone[1]
        assert all(result["held"] == results[0]["held"] < 0.85 * result["whole"] for result in results)


def test_a_family_without_a_plan_is_gathered(tmp_path: Path, ranks: Any) -> None:
    config = save_pair(tmp_path, "gpt2")
    for result in ranks(2).run(jobs.describe, config_file=config, overrides=TWO, prompts=PROMPTS[:2]):
        assert result["group"] is None and result["held"] == result["whole"]
        assert result["sentence"] == (
            "rollouts: a copy of the student on each rank"
            " (the model cannot be divided over 2 ranks: there is no plan for the family gpt2)"
        )


@pytest.mark.parametrize("layout", [GATHERED, TWO], ids=["gathered", "tensor_parallel"])
def test_an_interrupted_refresh_is_made_good_by_the_next(family: Path, ranks: Any, layout: list[str]) -> None:
    for result in ranks(2).run(inference_copy_jobs.refresh_after_an_interruption, config_file=family, overrides=layout):
        assert result == {"half_done": True, "sharded_again": True, "right_after": True}


def test_refreshing_takes_twice_the_largest_parameter_and_64_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Freed memory goes back to the system at once, or the allocator's leftovers would be counted too.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    deep = save_tiny_model(tmp_path / "deep", "llama", seed=1, width=768, layers=10)
    wide = save_tiny_model(tmp_path / "wide", "opt", seed=1, width=128, layers=1, padding=200_000)
    pool = Ranks(2, fresh=True)
    try:
        results = [
            result
            for model, divided in ((deep, True), (deep, False), (wide, True))
            for result in pool.run(
                inference_copy_jobs.peak_bytes_while_refreshing,
                model=model,
                deepspeed_config=SHARDED,
                divided=divided,
            )
        ]
    finally:
        pool.stop()
    for result in results:
        limit = 2 * result["largest"] + 64e6
        assert result["peak"] <= limit
        # Otherwise a full copy, or three times the largest parameter, could pass.
        assert max(result["whole"], 3 * result["largest"]) > limit


def test_ranks_of_a_host_that_do_not_divide_are_refused(family: Path, ranks: Any) -> None:
    overrides = ["generation.layout=tensor_parallel", "generation.tensor_parallel_size=3"]
    for message in ranks(2).run(jobs.refusal, config_file=family, overrides=overrides):
        assert message == (
            "generation.tensor_parallel_size=3 does not divide the number of ranks of each host (2);"
            " give one that does, or another generation.layout"
        )
