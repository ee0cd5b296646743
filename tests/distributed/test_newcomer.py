"""A method from outside the package: trains, resumes bit-exactly, is documented by --help and shown by the report."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kd.train.metric_log import read_metrics
from tests.distributed import harness
from tests.distributed import run_jobs as jobs
from tests.distributed.harness import RATE, make_batches, write_config
from tests.distributed.test_distillation_step import models_of, vocabulary_of
from tests.distributed.test_methods_resume import setting  # noqa: F401
from tests.distributed.test_run import TIMES
from tests.reference import plain_distillation as reference
from tests.tiny_models import save_tiny_model

METHOD = "method=tests.newcomer:AnnealedSkewKD"
ALPHAS = [0.5, 0.3, 0.1]


def test_its_steps_equal_the_reference(tmp_path: Path, ranks: Any) -> None:
    save_tiny_model(tmp_path / "teacher", "llama", seed=1, width=48, layers=3, padding=16)
    save_tiny_model(tmp_path / "student", "llama", seed=2, width=32, layers=2, padding=3)
    batches = make_batches(vocabulary=400)
    results = ranks(2).run(harness.train, config_file=write_config(tmp_path), overrides=[METHOD], batches=batches)
    harness.assert_same_on_all_ranks(results)
    models = models_of(tmp_path)
    means = []
    for alpha, rows in zip(ALPHAS, batches, strict=True):

        def divergence(target: torch.Tensor, trained: torch.Tensor, alpha: float = alpha) -> torch.Tensor:
            mixture = alpha * target.exp() + (1 - alpha) * trained.exp()
            return (target.exp() * (target - mixture.log())).sum(-1)

        found = reference.train(
            models["teacher"],
            models["student"],
            [[reference.Row(*row) for row in rows]],
            loss=reference.Loss(divergence=divergence),
            data=None,
            vocabulary=vocabulary_of(tmp_path),
            rate=RATE,
        )
        means += found["student_kd"]
    assert results[0]["means"]["student_kd"] == pytest.approx(means, rel=1e-4)
    before = results[0]["before"]["student"]
    updates = {name: value.detach() - before[name].double() for name, value in models["student"].named_parameters()}
    harness.assert_same_updates(before, results[0]["after"]["student"], updates)


def test_it_resumes_bit_exactly_and_is_reported(setting: Path, ranks: Any) -> None:  # noqa: F811
    runs = setting.parent / "newcomer"
    straight, resumed = runs / "straight", runs / "resumed"

    def run(directory: Path) -> list[str | None]:
        return ranks(2).run(jobs.run, config_file=setting, overrides=[METHOD, f"run.dir={directory}"])

    assert run(straight) == [None, None]
    shutil.copytree(straight, resumed)
    shutil.rmtree(resumed / "final")
    shutil.rmtree(resumed / "checkpoints" / "step-3")
    assert run(resumed) == [None, None]
    records = read_metrics(straight)
    assert [record["alpha"] for record in records] == pytest.approx(ALPHAS)
    assert records[-1]["seen_tokens"] == sum(record["response_tokens"] for record in records)
    for ours, theirs in zip(read_metrics(resumed), records, strict=True):
        assert {k: v for k, v in ours.items() if k not in TIMES} == {k: v for k, v in theirs.items() if k not in TIMES}
    ours, theirs = (load_file(directory / "final" / "model.safetensors") for directory in (resumed, straight))
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name

    page = runs / "report.html"
    report = [sys.executable, "-m", "evaluation.report", "--runs", str(runs), "--out", str(page)]
    result = subprocess.run(report, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "AnnealedSkewKD" in page.read_text()


def test_help_lists_its_settings_and_its_checks_are_run(setting: Path) -> None:  # noqa: F811
    train = [sys.executable, "-m", "kd", "train", METHOD]
    shown = subprocess.run([*train, "--help"], capture_output=True, text=True)
    assert "annealed.first_alpha" in shown.stdout and "α of skew_kl in the first step [0.5]" in shown.stdout
    wrong = subprocess.run(
        [*train, "annealed.last_alpha=0.9", "--config", str(setting), "--print-config"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr == "error: annealed.last_alpha is larger than annealed.first_alpha; exchange them\n"
