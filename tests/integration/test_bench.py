"""evaluation.bench from its command line to its files, on real ranks, with models of a few thousand parameters."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluation.bench.__main__ import main
from evaluation.bench.inputs import write_inputs
from evaluation.bench.launching import run_ranks
from evaluation.bench.peer_trl import measure_trl
from evaluation.bench.presets import PRESETS
from evaluation.report.analyses import costs_section
from evaluation.report.findings import read_findings
from kd.errors import UserError
from tests.integration import cost_jobs as jobs
from tests.integration.tiny_run import launch
from tests.run_on_ranks import Ranks

PARTS = {"generation", "teacher", "prompt", "student", "optimizer", "communication", "other"}


def test_a_step_is_measured_in_parts_beside_its_floor(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    options = ["--preset", "tiny", "--methods", "promptkd", "--steps", "2", "--out", str(out)]
    finished = launch(["deepspeed", "--num_gpus", "2", "--module", "evaluation.bench", *options])
    assert finished.returncode == 0, finished.stderr
    assert "step / floor" in finished.stdout
    assert {path.name for path in out.iterdir()} == {"cost.json", "cost.png", "cost.svg", "runs"}
    found = json.loads((out / "cost.json").read_text(encoding="utf-8"))
    assert found["machine"]["num_ranks"] == 2
    [table] = costs_section(read_findings([out], metric="rougeL", base=None, num_samples=0)).tables
    assert table.frame["method"][0] == "promptkd" and table.frame["s per step"][0] == found["costs"][0]["step_seconds"]
    [cost] = found["costs"]
    assert cost["case"] == {"method": "promptkd", "zero_stage": 3, "gather": "auto"}
    assert len(cost["all_step_seconds"]) == 2
    assert set(cost["seconds"]) == PARTS
    # Medians of two are means, which add up.
    assert sum(cost["seconds"].values()) == pytest.approx(cost["step_seconds"], rel=0.01)
    assert all(cost["seconds"][part] > 0 for part in PARTS - {"communication", "other"})
    assert 0 < cost["floor"]["step"] <= cost["floor"]["step_by_shape"] < cost["step_seconds"]
    assert cost["floor"]["step"] == pytest.approx(sum(cost["floor"]["parts"].values()))
    assert cost["num_bytes"]["gathered"] > 0
    assert cost["num_bytes"]["reduced"] > 0
    assert cost["waiting"]["total"] > 0
    assert cost["waiting"]["parts"]["student"] > 0
    assert cost["peak"]["allocated"] > 2**27


def test_trl_is_timed_on_the_same_inputs(tmp_path: Path) -> None:
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed (extra bench)")
    write_inputs(tmp_path / "models", PRESETS["tiny"], seed=0, device=torch.device("cpu"))
    cost = measure_trl(
        PRESETS["tiny"], inputs=tmp_path / "models", out=tmp_path, num_steps=2, num_ranks=1, num_threads=1
    )
    assert cost.name == "TRL"
    assert len(cost.all_step_seconds) == 2
    assert 0 < min(cost.all_step_seconds) <= cost.step_seconds <= max(cost.all_step_seconds)
    # It made responses of the length that it was asked for.
    assert "'completions/mean_length': '6'" in (tmp_path / "trl.log").read_text(encoding="utf-8")


def test_ranks_that_fail_leave_one_line_and_their_log(tmp_path: Path) -> None:
    log = tmp_path / "ranks.log"
    with pytest.raises(UserError, match=r"evaluation.bench.scaling_ranks failed on 1 rank .*ranks.log"):
        run_ranks(
            "evaluation.bench.scaling_ranks",
            ["nothing"],
            num_ranks=1,
            num_threads=1,
            result=tmp_path / "result.json",
            log=log,
        )
    assert "invalid choice: 'nothing'" in log.read_text(encoding="utf-8")


def test_both_losses_agree_and_are_measured_apart(tmp_path: Path) -> None:
    sizes = ["--positions", "64", "--vocabulary", "4096", "--student-width", "16", "--teacher-width", "32"]
    assert main(["loss", *sizes, "--repeats", "1", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "loss.json").read_text(encoding="utf-8"))
    [chunked], [plain] = (found["costs"][kind] for kind in ("chunked", "plain"))
    assert chunked["value"] == pytest.approx(plain["value"], rel=1e-4)
    assert chunked["seconds"] > 0
    # Four [64, 4096] tensors and more.
    assert plain["extra_bytes"] > 4 * 64 * 4096 * 4


def test_all_ways_to_decode_make_the_same_lengths(ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    """`measure_speeds` raises where a response has another length."""
    (tmp_path / "out").mkdir()
    for names, num_tokens in ranks(2).run(jobs.decode, out=tmp_path / "out"):
        assert names == [
            "this project",
            "transformers.generate",
            "transformers, continuous batching",
            "deepspeed.runtime.rollout",
            "this project, gathered",
        ]
        # Five prompts on each rank: the quantiles of Dolly's lengths at 10, 30, … 90 %.
        assert num_tokens == {2 * (9 + 24 + 45 + 82 + 173)}


def test_the_teacher_is_held_in_shards(ranks: Callable[[int], Ranks], tmp_path: Path) -> None:
    parts = {size: ranks(size).run(jobs.hold_teacher, directory=tmp_path / str(size)) for size in (1, 2)}
    [(whole, total)] = parts[1]
    assert whole == total
    for held, _ in parts[2]:
        # Shards are padded to equal sizes.
        assert total / 2 <= held <= total / 2 + 1024
