"""What the watch refuses, and what it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kd.data.encoding import Example
from kd.data.loader import ExampleBatch
from kd.errors import UserError
from kd.train.watch import Watch
from kd.zero.recorder import StepMetrics
from tests.unit.test_metrics import ALONE, config_in, step_of

NAN = float("nan")


def watch_in(directory: Path, *, rolls_out: bool = True, **model: str) -> Watch:
    return Watch(directory, config=config_in(directory, **model), rolls_out=rolls_out, world=ALONE)


def batch_of(num_rows: int, *, step: int = 12) -> ExampleBatch:
    examples = [
        Example(
            row_id=row,
            prompt="",
            prompt_ids=np.array([row, 5], dtype=np.int32),
            response_ids=None if row else np.array([9], dtype=np.int32),
            references=(),
            source=f"rows.jsonl:{row + 1}",
        )
        for row in range(num_rows)
    ]
    return ExampleBatch(step=step, examples=tuple(examples))


@pytest.mark.parametrize(
    ("metrics", "number"),
    [
        (step_of(student_kd=NAN), "student_kd is nan"),
        (step_of(student_kd=1.0, grad_norm=float("inf")), "grad_norm is inf"),
    ],
)
def test_a_number_that_is_not_finite_ends_the_run_with_its_rows(
    tmp_path: Path, metrics: StepMetrics, number: str
) -> None:
    with pytest.raises(UserError) as caught:
        watch_in(tmp_path).check_step(metrics, batch_of(4), last_saved=8)
    assert str(caught.value) == (
        f"step 12: {number} on rank 0 (rows rows.jsonl:1, rows.jsonl:2, rows.jsonl:3, …; all in diverged-step-12.json):"
        " training has diverged; the latest checkpoint is from step 8; lower the rates: the same command with"
        " run.resume=changed and, for example, optimizer.learning_rate=1e-6"
    )
    (share,) = json.loads((tmp_path / "diverged-step-12.json").read_text())["ranks"]
    assert share["rows"][0] == {"source": "rows.jsonl:1", "prompt_ids": [0, 5], "response_ids": [9]}
    assert [row["source"] for row in share["rows"]] == [f"rows.jsonl:{row}" for row in range(1, 5)]


def test_finite_steps_and_overflows_of_fp16_pass(tmp_path: Path) -> None:
    watch_in(tmp_path).check_step(step_of(student_kd=2.0), batch_of(1), last_saved=0)
    overflow = step_of(student_kd=2.0, grad_norm=float("inf"))
    watch_in(tmp_path, dtype="fp16").check_step(overflow, batch_of(1), last_saved=0)
    with pytest.raises(UserError, match="student_kd is nan.*there is no checkpoint yet"):
        watch_in(tmp_path, dtype="fp16").check_step(step_of(student_kd=NAN), batch_of(1), last_saved=0)
    metrics = step_of(student_kd=1.0)
    metrics.values["prompt_grad_norm"] = torch.tensor(float("inf"))
    with pytest.raises(UserError, match="prompt_grad_norm is inf"):
        watch_in(tmp_path).check_step(metrics, batch_of(1), last_saved=0)


def test_results_and_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    watch = watch_in(tmp_path)
    watch.check_results({"validation/loss": 2.0}, step=3)
    watch.check_weights([], step=3)
    with pytest.raises(UserError, match="validation/loss after step 3 is nan: training has diverged; lower the rates"):
        watch.check_results({"validation/rougeL": 1.0, "validation/loss": NAN}, step=3)
    with pytest.raises(UserError, match=r"after step 3, lm_head\.weight of the student has values that are NaN"):
        watch.check_weights(["lm_head.weight", "norm.weight"], step=3)


def test_suspicious_numbers_are_said_once(tmp_path: Path) -> None:
    watch = watch_in(tmp_path)
    limit = watch._limit
    assert limit is not None

    def said(step: int, *, loss: float = 1.0, length: float = 10.0) -> list[str]:
        return list(watch.notice({"step": step, "student_kd": loss, "mean_response_length": length}))

    assert [said(step) for step in range(1, 21)] == [[]] * 20
    assert said(21, loss=2.9) == []
    assert said(22, loss=3.1) == ["step 22: the loss is 3.1, usually 1; lower the learning rates if it stays"]
    assert said(23, loss=9.0) == []
    (full,) = said(24, length=limit)
    assert full.startswith(f"step 24: every rollout reaches generation.max_new_tokens={limit}; raise it")
    (empty,) = said(25, length=1.0)
    assert empty.startswith("step 25: every rollout ends at once: the student has collapsed")
    assert said(26, length=1.0) == said(27, length=limit) == []
    # Responses of the data have the lengths that they have.
    assert list(watch_in(tmp_path, rolls_out=False).notice({"step": 1, "mean_response_length": 1.0})) == []
