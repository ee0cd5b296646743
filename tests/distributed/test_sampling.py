"""A row's response does not depend on the batch, the rank, the layout or the number of ranks."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.distributed import generation_jobs as jobs
from tests.distributed import sampling_fault_jobs as faults
from tests.distributed.harness import write_config
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
    if layout == "in place":
        return ["generation.layout=zero3", "engine.gather=model"]
    num_ranks = 2 if layout == "tensor_parallel" else 1
    settings = [f"generation.layout={layout}", f"generation.tensor_parallel_size={num_ranks}"]
    return [*settings, "engine.gather=layer"] if layout == "zero3" else settings


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
        (3, "in place", 60),
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
    overrides = [*layout_overrides("zero3"), "generation.max_batch_tokens=1"]
    results = ranks(2).run(
        jobs.sample, config_file=write_config(student), overrides=overrides, prompts=PROMPTS[:5], steps=[1]
    )
    assert merged(results)[1] == {row: ids for row, ids in whole[1].items() if row < 5}


def test_steps_draw_different_responses_from_the_shared_vocabulary(whole: Any) -> None:
    assert whole[1] != whole[2]
    tokens = [token for step in whole.values() for ids in step.values() for token in ids]
    assert max(tokens) < VOCABULARY


@pytest.fixture(
    scope="module",
    params=[
        ("gathered", "true"),
        ("gathered", "false"),
        ("tensor_parallel", "true"),
        ("tensor_parallel", "false"),
        # Without copies there is nothing to keep.
        ("zero3", "true"),
        ("in place", "true"),
    ],
    ids="-".join,
)
def copying(request: pytest.FixtureRequest) -> tuple[str, str]:
    """generation.layout and generation.keep_weights."""
    return request.param


@pytest.fixture(scope="module")
def undisturbed(student: Path, copying: tuple[str, str], ranks: Any) -> list[Any]:
    """Responses before and after a training step."""
    return run_around_a_step(student, copying, ranks)


def run_around_a_step(student: Path, copying: tuple[str, str], ranks: Any, **arguments: Any) -> list[Any]:
    layout, keep = copying
    return ranks(2).run(
        faults.sample_train_sample,
        config_file=write_config(student),
        overrides=[*layout_overrides(layout), f"generation.keep_weights={keep}"],
        prompts=PROMPTS,
        **arguments,
    )


def test_weights_are_refreshed_before_each_global_batch(
    student: Path, whole: Any, undisturbed: list[Any], ranks: Any, tmp_path: Path
) -> None:
    """After an optimizer step, the same random numbers give what a new model of the new weights says."""
    shutil.copytree(student, tmp_path, dirs_exist_ok=True)
    save_file(undisturbed[0]["weights"], tmp_path / "student" / "model.safetensors", metadata={"format": "pt"})
    (new,) = ranks(1).run(
        jobs.sample, config_file=write_config(tmp_path, stage=0), overrides=[], prompts=PROMPTS, steps=[1]
    )
    said = merged([{when: result[when] for when in ("before", "after")} for result in undisturbed])
    assert said == {"before": whole[1], "after": new[1]}
    assert all(said["before"][row] != said["after"][row] for row in range(len(PROMPTS)))


def test_an_exception_while_sampling_leaves_the_student_as_it_was(
    student: Path, copying: tuple[str, str], undisturbed: list[Any], ranks: Any
) -> None:
    """What comes after an interruption in the third pass is what would have come without it."""
    disturbed = run_around_a_step(student, copying, ranks, interrupted_pass=3)
    for result, expected in zip(disturbed, undisturbed, strict=True):
        assert result["left"] == expected["left"]
        assert result["left"]["training"] and result["left"]["gradients_on"]
        assert (result["left"]["copied_bytes"] == 0) == (copying[1] == "false")
        assert (result["before"], result["after"]) == (expected["before"], expected["after"])
        for name, value in expected["weights"].items():
            assert torch.equal(value, result["weights"][name]), name
