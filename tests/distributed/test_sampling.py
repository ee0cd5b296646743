"""A row's response does not depend on the batch, the rank, the layout or the number of ranks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed import generation_jobs as jobs
from tests.distributed.test_promptkd_step import write_config
from tests.tiny_models import save_tiny_model

VOCABULARY = 400
PROMPTS = [np.random.default_rng(row).integers(1, VOCABULARY, 3 + 2 * row).tolist() for row in range(6)]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sampling")
    save_tiny_model(directory / "teacher", "llama", seed=1)
    save_tiny_model(directory / "student", "llama", seed=2, padding=30)
    return directory


@pytest.fixture(scope="module")
def whole(student: Path, ranks: Any) -> Any:
    """Responses of one rank that holds the plain student."""
    config = write_config(student, stage=0)
    (result,) = ranks(1).run(jobs.sample, config_file=config, overrides=[], prompts=PROMPTS, steps=[1, 2])
    return result


def layout_overrides(layout: str) -> list[str]:
    num_ranks = 2 if layout == "tensor_parallel" else 1
    return [f"generation.layout={layout}", f"generation.tensor_parallel_size={num_ranks}"]


def merged(results: list[Any]) -> Any:
    return {step: {row: ids for result in results for row, ids in result[step].items()} for step in results[0]}


@pytest.mark.parametrize(
    ("stage", "layout", "budget"),
    [
        (1, "auto", 16384),
        (3, "auto", 16384),
        (3, "gathered", 16384),
        (3, "gathered", 60),
        (3, "zero3", 16384),
        (3, "zero3", 60),
        (3, "tensor_parallel", 16384),
        (3, "tensor_parallel", 60),
    ],
)
def test_layouts_ranks_and_batches_agree(
    student: Path, whole: Any, ranks: Any, stage: int, layout: str, budget: int
) -> None:
    overrides = [*layout_overrides(layout), f"generation.max_batch_tokens={budget}"]
    config = write_config(student, stage=stage)
    results = ranks(2).run(jobs.sample, config_file=config, overrides=overrides, prompts=PROMPTS, steps=[1, 2])
    assert merged(results) == whole


def test_ranks_may_have_unequal_numbers_of_batches(student: Path, whole: Any, ranks: Any) -> None:
    overrides = ["generation.layout=zero3", "generation.max_batch_tokens=1"]
    results = ranks(2).run(
        jobs.sample, config_file=write_config(student), overrides=overrides, prompts=PROMPTS[:5], steps=[1]
    )
    assert merged(results)[1] == {row: ids for row, ids in whole[1].items() if row < 5}


def test_steps_draw_different_responses_from_the_shared_vocabulary(whole: Any) -> None:
    assert whole[1] != whole[2]
    tokens = [token for step in whole.values() for ids in step.values() for token in ids]
    assert max(tokens) < VOCABULARY


@pytest.mark.parametrize("keep", ["true", "false"])
@pytest.mark.parametrize("layout", ["gathered", "tensor_parallel", "zero3"])
def test_an_exception_while_sampling_leaves_the_student_as_it_was(
    student: Path, ranks: Any, layout: str, keep: str
) -> None:
    overrides = [*layout_overrides(layout), f"generation.keep_weights={keep}"]
    for result in ranks(2).run(jobs.fail_while_sampling, config_file=write_config(student), overrides=overrides):
        assert result["raised"] and result["training"] and result["gradients_on"]
        assert result["same_module"] == (layout == "zero3")
        if layout != "zero3":
            assert (result["decoding_bytes"] == 0) == (keep == "false")


def test_weights_are_refreshed_before_each_window(student: Path, ranks: Any) -> None:
    """With kept weights and with freed ones, later windows see the same student."""
    results = [
        merged(
            ranks(2).run(
                jobs.sample,
                config_file=write_config(student),
                overrides=["generation.layout=gathered", f"generation.keep_weights={keep}"],
                prompts=PROMPTS,
                steps=[1, 2],
            )
        )
        for keep in ("true", "false")
    ]
    assert results[0] == results[1]
