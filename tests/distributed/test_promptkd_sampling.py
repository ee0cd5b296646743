"""PromptKD with rollouts, whose hidden states are kept and used again, equals plain torch."""

from pathlib import Path
from typing import Any

import pytest

from kd.methods.base import uniform
from kd.methods.promptkd import PROMPT_ROWS
from tests.distributed import harness
from tests.distributed import promptkd_jobs as jobs
from tests.distributed.harness import assert_same_on_all_ranks, make_batches, write_config
from tests.distributed.test_promptkd_step import assert_same_updates, run_reference
from tests.distributed.test_sampling import layout_overrides
from tests.tiny_models import save_tiny_model

# With this seed some responses end early, so that the rows of a micro-batch have different numbers of states.
SEED = "run.seed=1"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of different width, depth and padded vocabulary."""
    directory = tmp_path_factory.mktemp("pair")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", "llama", seed=2, width=32, layers=2, padding=3)
    return directory


@pytest.mark.parametrize(("layout", "micro_batch"), [("gathered", 1), ("tensor_parallel", 2), ("zero3", 2)])
def test_steps_that_sample_on_two_ranks_equal_the_reference(
    layout: str, micro_batch: int, pair: Path, ranks: Any
) -> None:
    """The reference gets the responses, and computes the student's distributions in a forward pass."""
    result, other = ranks(2).run(
        harness.train,
        config_file=write_config(pair, micro_batch=micro_batch),
        overrides=[SEED, *layout_overrides(layout)],
        batches=make_batches(vocabulary=400),
        rolls_out=True,
    )
    assert result["kept_hidden"] == other["kept_hidden"] == [True, True, True]
    batches = [[(prompt, response) for _, prompt, response in rows] for rows in result["sequences"]]
    assert len({len(response) for rows in batches for _, response in rows}) > 1
    updates, prompt_update, losses = run_reference(pair, batches, prompt=result["prompt_before"])
    assert_same_updates(result, updates, prompt_update)
    assert result["means"] == {name: pytest.approx(values, rel=1e-4) for name, values in losses.items()}
    assert_same_on_all_ranks([result, other])


def test_kept_hidden_states_serve_a_part_of_the_global_batch(pair: Path, ranks: Any) -> None:
    """One row of four: one of the ranks has none."""
    result, _ = ranks(2).run(
        harness.train,
        config_file=write_config(pair),
        overrides=[SEED, "prompt.batch_fraction=0.25"],
        batches=make_batches(vocabulary=400),
        rolls_out=True,
    )
    assert result["kept_hidden"] == [True, True, True]
    batches = [[(prompt, response) for _, prompt, response in rows] for rows in result["sequences"]]
    tuned_on = [[int(4 * uniform(1, step, stream=PROMPT_ROWS))] for step in (1, 2, 3)]
    updates, prompt_update, losses = run_reference(pair, batches, prompt=result["prompt_before"], tuned_on=tuned_on)
    assert_same_updates(result, updates, prompt_update)
    assert result["means"] == {name: pytest.approx(values, rel=1e-4) for name, values in losses.items()}


@pytest.mark.parametrize("stage", [0, 3], ids=["in place", "copy"])
def test_rollouts_use_torchs_own_linear_beside_a_zero3_teacher(pair: Path, ranks: Any, stage: int) -> None:
    batches = make_batches(vocabulary=400)[:1]
    results = ranks(2).run(jobs.linear_while_decoding, config_file=write_config(pair, stage=stage), batches=batches)
    assert results == [[True]] * 2
