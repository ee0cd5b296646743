"""evaluation.bench from its command line to its files, with models of a few thousand parameters."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evaluation.bench.__main__ import main
from evaluation.report.analyses import costs_section
from evaluation.report.findings import read_findings
from tests.integration.tiny_run import ROOT, launch

pytest.importorskip("matplotlib")
PHASES = {"generation", "teacher", "prompt", "student", "optimizer"}
FAILING_TRL = """
class DistillationConfig:
    def __init__(self, **settings): raise RuntimeError("TRL has failed")
DistillationTrainer = None
"""


def bench(*options: str, num_ranks: int = 1, **variables: str) -> subprocess.CompletedProcess[str]:
    launcher = ["deepspeed", "--num_gpus", "2", "--module"] if num_ranks == 2 else [sys.executable, "-m"]
    return launch([*launcher, "evaluation.bench", "--preset", "tiny", "--steps", "2", *options], **variables)


def results(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "cost.json").read_text(encoding="utf-8"))
    return found


def test_a_step_is_measured_by_phases_on_two_ranks(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finished = bench("--methods", "promptkd", "--out", str(out), "prompt.length=5", num_ranks=2)
    assert finished.returncode == 0, finished.stderr
    assert "step (s)" in finished.stdout
    assert {path.name for path in out.iterdir()} == {"cost.json", "cost.png", "cost.svg", "runs"}
    assert "length: 5" in (out / "runs" / "promptkd-ZeRO-3" / "config.yaml").read_text()
    found = results(out)
    assert found["machine"]["num_ranks"] == 2
    [table] = costs_section(read_findings([out], metric="rougeL", base=None, num_samples=0)).tables
    assert table.frame["method"][0] == "promptkd" and table.frame["s per step"][0] == found["costs"][0]["step_seconds"]
    [cost] = found["costs"]
    assert cost["case"] == {"method": "promptkd", "zero_stage": 3, "gather": "auto"}
    assert len(cost["all_step_seconds"]) == 2
    # Medians of two are means, which add up.
    assert sum(cost["seconds"].values()) == pytest.approx(cost["step_seconds"], rel=0.01)
    assert all(cost["seconds"][phase] > 0 for phase in PHASES)
    assert all(cost["num_flops"][phase] > 0 for phase in PHASES - {"optimizer"})
    assert cost["num_flops"]["total"] >= sum(cost["num_flops"][phase] for phase in PHASES)
    assert cost["num_bytes"]["gathered"] > 0
    assert cost["num_bytes"]["reduced"] > 0
    assert cost["peak"]["allocated"] > 2**27


def test_results_of_the_cases_before_a_failure_are_kept(tmp_path: Path) -> None:
    # A single rank cannot divide the student; sft does not sample from it.
    division = ("generation.layout=tensor_parallel", "generation.tensor_parallel_size=2")
    finished = bench("--methods", "sft,gkd", "--out", str(tmp_path / "out"), *division)
    assert finished.returncode == 2
    assert "generation.tensor_parallel_size=2" in finished.stderr
    assert "step (s)" in finished.stdout
    assert [cost["name"] for cost in results(tmp_path / "out")["costs"]] == ["sft ZeRO-3"]
    assert not (tmp_path / "out" / "models").exists()


def test_results_are_kept_and_printed_if_the_peer_fails(tmp_path: Path) -> None:
    (tmp_path / "trl.py").write_text(FAILING_TRL, encoding="utf-8")
    options = ("--methods", "gkd", "--zero", "0", "--peer", "trl", "--out", str(tmp_path / "out"))
    finished = bench(*options, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert finished.returncode != 0
    assert "TRL has failed" in finished.stderr
    assert "step (s)" in finished.stdout
    assert len(results(tmp_path / "out")["costs"]) == 1


def test_trl_trains_the_same_shapes(tmp_path: Path) -> None:
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed (extra bench)")
    options = ("--methods", "gkd", "--zero", "0", "--peer", "trl", "--out", str(tmp_path / "out"))
    finished = bench(*options, num_ranks=2)
    assert finished.returncode == 0, finished.stderr
    found = results(tmp_path / "out")
    assert len(found["peer"]["all_step_seconds"]) == 2
    [cost] = found["costs"]
    assert cost["relative"] == pytest.approx(cost["step_seconds"] / found["peer"]["step_seconds"])


def test_both_losses_agree_and_the_fused_one_needs_less_memory(tmp_path: Path) -> None:
    assert main(["loss", "--positions", "256", "--vocabulary", "65536", "--out", str(tmp_path / "out")]) == 0
    costs = json.loads((tmp_path / "out" / "loss.json").read_text(encoding="utf-8"))["costs"]
    assert costs["fused"]["value"] == pytest.approx(costs["plain"]["value"], rel=1e-4)
    # The plain one holds several tensors of the size of the logits.
    assert costs["plain"]["extra_bytes"] > 3 * 256 * 65536 * 4


def test_all_decoders_make_the_same_lengths(tmp_path: Path) -> None:
    assert main(["decoding", "--preset", "tiny", "--prompts", "5", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "decoding.json").read_text(encoding="utf-8"))
    # The quantiles of Dolly's lengths at 10, 30, … 90 %.
    assert found["num_tokens"] == 9 + 24 + 45 + 82 + 173
    fixed = "kd.rollout.decode, fixed shapes"
    assert set(found["tokens_per_second"]) == {"kd.rollout.decode", fixed, "transformers.generate"}
