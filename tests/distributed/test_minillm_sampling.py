"""A teacher-mixed response does not depend on the batch, the rank or the layout of either model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.distributed import minillm_jobs as jobs
from tests.distributed.harness import write_config
from tests.tiny_models import save_tiny_model

VOCABULARY = 400
PROMPTS = [np.random.default_rng(row).integers(1, VOCABULARY, 3 + 2 * row).tolist() for row in range(6)]
MAX_TOKENS = 8
# Of the padding columns: it cannot be drawn.
NEVER = VOCABULARY + 1
OVERRIDES = [
    "method=minillm",
    "minillm.corpus=none",
    "schedule.global_batch=256",
    f"generation.max_new_tokens={MAX_TOKENS}",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixed")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=48, layers=2, padding=11)
    save_tiny_model(directory / "student", "llama", seed=2, layers=1, padding=30)
    return directory


@pytest.fixture(scope="module")
def unending(pair: Path, ranks: Any) -> dict[int, list[int]]:
    """Responses of one rank on which both models are whole, and no token ends a response."""
    config_file = write_config(pair, stage=0, teacher_stage=0)
    (result,) = ranks(1).run(jobs.sample, config_file=config_file, overrides=OVERRIDES, shares=[PROMPTS], eos_id=NEVER)
    assert {len(response) for response in result.values()} == {MAX_TOKENS}
    assert max(token for response in result.values() for token in response) < VOCABULARY
    return result


@pytest.mark.parametrize(
    ("stage", "teacher_stage", "layout"),
    [
        (0, 3, "auto"),
        (3, 0, "gathered"),
        (3, 3, "zero3"),
        (3, 3, "tensor_parallel"),
    ],
)
def test_layouts_ranks_and_batches_agree(
    pair: Path, unending: dict[int, list[int]], ranks: Any, stage: int, teacher_stage: int, layout: str
) -> None:
    """With more rows and batches on one rank than on the other, and responses of different lengths."""
    eos = unending[1][2]
    config_file = write_config(pair, stage=stage, teacher_stage=teacher_stage)
    overrides = [*OVERRIDES, f"generation.layout={layout}", "generation.max_batch_tokens=60"]
    if layout == "tensor_parallel":
        overrides.append("generation.tensor_parallel_size=2")
    results = ranks(2).run(
        jobs.sample, config_file=config_file, overrides=overrides, shares=[PROMPTS[:4], PROMPTS[4:]], eos_id=eos
    )
    expected = {
        row: response[: response.index(eos) + 1 if eos in response else MAX_TOKENS]
        for row, response in unending.items()
    }
    assert results[0] | results[1] == expected
    assert len({len(response) for response in expected.values()}) > 1


def test_the_teachers_share_has_an_effect(pair: Path, unending: dict[int, list[int]], ranks: Any) -> None:
    config_file = write_config(pair, stage=0, teacher_stage=0)
    overrides = [*OVERRIDES, "minillm.teacher_share=0.7"]
    (result,) = ranks(1).run(jobs.sample, config_file=config_file, overrides=overrides, shares=[PROMPTS], eos_id=NEVER)
    assert result != unending


@pytest.mark.parametrize(
    ("layout", "gather"), [("gathered", "model"), ("tensor_parallel", "model"), ("zero3", "layer")]
)
def test_an_exception_while_sampling_leaves_both_models_as_they_were(
    pair: Path, ranks: Any, layout: str, gather: str
) -> None:
    """A step after one that was interrupted in the teacher's second pass is what it would have been without that."""
    overrides = ["method=minillm", "minillm.corpus=none", "minillm.rollouts=4", f"engine.gather={gather}"]
    overrides += [f"generation.layout={layout}", f"generation.max_new_tokens={MAX_TOKENS}"]
    if layout == "tensor_parallel":
        overrides.append("generation.tensor_parallel_size=2")
    undisturbed, disturbed = (
        ranks(2).run(
            jobs.sample_and_train,
            config_file=write_config(pair),
            overrides=overrides,
            batches=[[(prompt, []) for prompt in PROMPTS[:4]]],
            interrupted_pass=number,
        )
        for number in (None, 4)
    )
    for result, expected in zip(disturbed, undisturbed, strict=True):
        # It is slow, and a setting avoids it.
        assert any("for every sampled token" in line for line in result["said"]) == (gather == "layer")
        assert result["left"] == {"training": {"student": True, "teacher": True}, "grad": True}
        assert result["released"] == {"student": True, "teacher": True}
        assert result["responses"] == expected["responses"]
        assert result["means"] == expected["means"]
        for name, value in expected["weights"].items():
            assert torch.equal(value, result["weights"][name]), name
