"""Logged metrics: means over an interval, times without pauses, and the error about numbers that are not finite."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd.config.schema import Config, DataConfig, ModelConfig, RunConfig
from kd.distributed import World
from kd.errors import UserError
from kd.train import metric_log
from kd.train.metric_log import MetricLog, check_trackers, read_metrics
from kd.zero.recorder import Recorder, StepMetrics, Stopwatch

CPU = torch.device("cpu")
ALONE = World(rank=0, size=1, local_rank=0, device=CPU)


def config_in(directory: Path, **model: str) -> Config:
    return Config(
        method="sft",
        model=ModelConfig(student="unused", **model),  # type: ignore[arg-type]
        data=DataConfig(train="unused"),
        run=RunConfig(dir=str(directory), tensorboard=False),
    )


def step_of(*, tokens: int = 10, grad_norm: float = 1.0, **token_means: float) -> StepMetrics:
    means = {name: torch.tensor(value) for name, value in token_means.items()}
    return StepMetrics(num_tokens=tokens, token_means=means, values={"grad_norm": grad_norm}, stopwatch=Stopwatch(CPU))


def log_in(directory: Path, *, last_step: int = 0, **model: str) -> MetricLog:
    return MetricLog(directory, config=config_in(directory, **model), world=ALONE, last_step=last_step)


def test_an_interval_is_the_mean_over_its_tokens(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(step_of(tokens=10, student_kd=1.0, grad_norm=5.0))
    log.add(step_of(tokens=30, student_kd=3.0, cross_entropy=7.0))
    record = log.close_interval(step=2, epoch=0.5)
    assert record["student_kd"] == pytest.approx((10 * 1 + 30 * 3) / 40)
    # The mean over the steps that have the term.
    assert record["cross_entropy"] == 7
    assert (record["step"], record["epoch"], record["grad_norm"]) == (2, 0.5, 1.0)
    assert (record["response_tokens"], record["mean_response_length"]) == (20, 40 / 2 / 64)


def test_a_skipped_step_has_no_loss(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.add(step_of(tokens=10, student_kd=2.0))
    log.add(StepMetrics(stopwatch=Stopwatch(CPU)))
    record = log.close_interval(step=2, epoch=0.1)
    assert (record["student_kd"], record["response_tokens"]) == (2, 5)
    log.add(StepMetrics(stopwatch=Stopwatch(CPU)))
    assert "student_kd" not in log.close_interval(step=3, epoch=0.2)


def test_pauses_between_steps_are_not_step_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(metric_log.time, "perf_counter", lambda: now)
    log = log_in(tmp_path)
    for seconds in (2.0, 4.0):
        now += seconds
        log.add(step_of(tokens=12))
        now += 50  # a checkpoint
        log.restart_clock()
    record = log.close_interval(step=2, epoch=1.0)
    assert (record["step_seconds"], record["tokens_per_second"]) == (3, 4)


def test_a_recorder_collects_one_step() -> None:
    recorder = Recorder(CPU)
    recorder.start(step=3)
    for token_sum in (4.0, 6.0):
        recorder.add_token_mean("student_kd", torch.tensor(token_sum), num_tokens=20)
    # GKD trains on references too: the rollouts' number of tokens counts.
    recorder.trained_on(20)
    recorder.trained_on(35)
    recorder.record("learning_rate", 0.1)
    with recorder.time("student"), recorder.time("optimizer"):
        pass
    metrics = recorder.finish()
    assert (metrics.num_tokens, metrics.values) == (20, {"learning_rate": 0.1})
    assert metrics.token_means["student_kd"].item() == pytest.approx(0.5)
    assert list(metrics.stopwatch.seconds()) == ["student"]
    recorder.start(step=4)
    assert recorder.finish().token_means == {}


def test_an_overflow_of_fp16_is_no_divergence(tmp_path: Path) -> None:
    log = log_in(tmp_path, dtype="fp16")
    log.add(step_of(grad_norm=float("inf")))
    assert "grad_norm" not in log.close_interval(step=1, epoch=1.0)


def test_a_resumed_run_replaces_later_and_torn_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step}) for step in (1, 2, 3)] + ['{"step": 4, "cross']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    # The torn line of a run that is writing, or was killed.
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    log_in(tmp_path, last_step=2).write({"step": 3, "new": 1})
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "new": 1}]


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    config = replace(config_in(tmp_path), run=RunConfig(dir=str(tmp_path), wandb="project"))
    with pytest.raises(UserError, match="wandb is not installed"):
        check_trackers(config)
