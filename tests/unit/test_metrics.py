"""What is logged: means over an interval, honest times, and an end where numbers are not finite."""

import dataclasses
import importlib.util
import json
import time
from pathlib import Path

import pytest
import torch

from kd.config.schema import Config, DataConfig, ModelConfig, RunConfig
from kd.distributed import World
from kd.errors import UserError
from kd.train.metric_log import MetricLog, check_trackers, read_metrics
from kd.zero.recorder import StepMetrics, Stopwatch

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)


def config_in(directory: Path, **model: str) -> Config:
    return Config(
        method="sft",
        model=ModelConfig(student="unused", **model),  # type: ignore[arg-type]
        data=DataConfig(train="unused"),
        run=RunConfig(dir=str(directory), tensorboard=False),
    )


def step_of(loss_sum: float, *, tokens: int = 10, grad_norm: float = 1.0) -> StepMetrics:
    return StepMetrics(
        num_tokens=tokens,
        num_sequences=5,
        token_sums={"cross_entropy": torch.tensor(loss_sum)},
        values={"grad_norm": grad_norm},
        stopwatch=Stopwatch(CPU),
    )


def log_in(directory: Path, *, last_step: int = 0, **model: str) -> MetricLog:
    return MetricLog(directory, config=config_in(directory, **model), world=ALONE, last_step=last_step)


def test_an_interval_is_the_mean_over_its_tokens(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(step_of(10.0, tokens=10))
    log.add(step_of(90.0, tokens=30))
    record = log.close_interval(step=2, epoch=0.5)
    assert record["cross_entropy"] == pytest.approx(100 / 40)
    assert record["response_tokens"] == 20 and record["mean_response_length"] == 4


def test_a_skipped_step_counts_no_loss(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(dataclasses.replace(step_of(0.0, tokens=0), token_sums={}, values={}))
    record = log.close_interval(step=1, epoch=0.1)
    assert "cross_entropy" not in record and record["response_tokens"] == 0


def test_pauses_between_steps_are_not_step_time(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for _ in range(2):
        time.sleep(0.05)
        log.add(step_of(1.0))
        time.sleep(0.3)  # a checkpoint
        log.restart_clock()
    assert 0.05 <= log.close_interval(step=2, epoch=1.0)["step_seconds"] < 0.2


@pytest.mark.parametrize("step", [step_of(float("nan")), step_of(1.0, grad_norm=float("inf"))])
def test_numbers_that_are_not_finite_end_the_run(tmp_path: Path, step: StepMetrics) -> None:
    log = log_in(tmp_path)
    log.add(step)
    with pytest.raises(UserError, match="training has diverged"):
        log.close_interval(step=1, epoch=1.0)


def test_an_overflow_of_fp16_is_no_divergence(tmp_path: Path) -> None:
    log = log_in(tmp_path, dtype="fp16")
    log.add(step_of(1.0, grad_norm=float("inf")))
    assert "grad_norm" not in log.close_interval(step=1, epoch=1.0)


def test_a_resumed_run_writes_its_steps_once(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)] + ['{"step": 4, "cross']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    log = log_in(tmp_path, last_step=2)
    log.write({"step": 3})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_half_a_line_at_the_end_is_not_read(tmp_path: Path) -> None:
    """Of a run that is writing, or was killed."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "val')
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2]


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    config = dataclasses.replace(config_in(tmp_path), run=RunConfig(dir=str(tmp_path), wandb="project"))
    with pytest.raises(UserError, match="wandb is not installed"):
        check_trackers(config)
