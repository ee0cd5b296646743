"""PromptKD on responses that it samples itself, guided by the states that sampling kept, equals plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import distillation_jobs as jobs
from tests.distributed.test_promptkd_step import assert_same_updates, make_windows, run_reference, write_config
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
    """The reference is told the responses, and reads them anew to know what the student would say."""
    result, other = ranks(2).run(
        jobs.train,
        config_file=write_config(pair, micro_batch=micro_batch),
        overrides=[SEED, *layout_overrides(layout)],
        windows=make_windows(vocabulary=400),
    )
    assert result["kept_hidden"] == other["kept_hidden"] == [True, True, True]
    windows = [[(prompt, response) for _, prompt, response in rows] for rows in result["sequences"]]
    assert len({len(response) for rows in windows for _, response in rows}) > 1
    updates, prompt_update, losses = run_reference(pair, windows, prompt=result["prompt_before"])
    students = {when: {"student": result[when]} for when in ("before", "after")}
    assert_same_updates(result | students, updates, prompt_update)
    assert result["means"] == {name: pytest.approx(values, rel=1e-4) for name, values in losses.items()}
    assert torch.equal(result["prompt_after"], other["prompt_after"])
    for name, value in result["after"].items():
        assert torch.equal(value, other["after"][name]), name
