"""The byte account against the tensors that real engines hold, on two ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed import plan_jobs
from tests.distributed.harness import Pair, write_config
from tests.tiny_models import save_tiny_model

PROMPT, RESPONSE = 48, 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("plan")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=512, layers=2, tie_word_embeddings=False)
    save_tiny_model(directory / "student", "opt", seed=2, width=384, layers=2)
    for stage in range(4):
        section: dict[str, Any] = {"stage": stage, "reduce_bucket_size": 200_000}
        if stage == 3:
            section["stage3_param_persistence_threshold"] = 0
        (directory / f"small{stage}.json").write_text(json.dumps({"zero_optimization": section}))
    return directory


def full_batches() -> list[list[Pair]]:
    """Two global batches of four sequences that are as long as the configuration allows."""
    ids = np.random.default_rng(0).integers(0, 400, size=(2, 4, PROMPT + RESPONSE))
    return [[(row[:PROMPT].tolist(), row[PROMPT:].tolist()) for row in batch] for batch in ids]


@pytest.mark.parametrize(
    ("stage", "teacher_stage", "dtype", "gather"),
    [
        (0, 0, "fp32", "auto"),
        (0, 0, "bf16", "auto"),
        (2, 3, "bf16", "layer"),
        (3, 3, "bf16", "model"),
        (3, 3, "fp32", "model"),
    ],
)
def test_the_account_is_what_engines_hold(
    pair: Path, ranks: Any, stage: int, teacher_stage: int, dtype: str, gather: str
) -> None:
    config = write_config(pair, stage=stage, teacher_stage=teacher_stage, micro_batch=1, dtype=dtype)
    overrides = [
        f"engine.student={pair / f'small{stage}.json'}",
        f"engine.teacher={pair / f'small{teacher_stage}.json'}",
        f"engine.gather={gather}",
        "optimizer.name=adamw",
        f"data.max_prompt_tokens={PROMPT}",
        f"data.max_sequence_tokens={PROMPT + RESPONSE}",
        f"generation.max_new_tokens={RESPONSE}",
    ]
    (found, _) = ranks(2).run(
        plan_jobs.measured_and_planned, config_file=config, overrides=overrides, batches=full_batches()
    )
    assert set(found) == {"teacher", "prompt", "student", "optimizer"}
    peak = max(measured for measured, _ in found.values())
    for measured, planned in found.values():
        # DeepSpeed's small buffers, and what it frees late, are not in the account.
        assert abs(planned - measured) < 0.12 * peak, found
    assert max(planned for _, planned in found.values()) == pytest.approx(peak, rel=0.1)
