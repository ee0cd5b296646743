"""A PromptKD step on real ranks equals a plain torch reference, however it is split and sharded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed import promptkd_jobs as jobs
from tests.reference import plain_promptkd as reference
from tests.tiny_models import FAMILIES, save_tiny_model

NUM_STEPS = 3
RATE = 0.5


def make_windows(*, vocabulary: int, seed: int = 0) -> list[list[jobs.Pair]]:
    """Three windows of 4 rows with uneven lengths; one response is empty."""
    generator = np.random.default_rng(seed)
    windows = []
    for _ in range(NUM_STEPS):
        prompts, responses = generator.integers(3, 12, size=4), generator.integers(1, 9, size=4)
        rows = [
            (generator.integers(0, vocabulary, n).tolist(), generator.integers(0, vocabulary, m).tolist())
            for n, m in zip(prompts, responses, strict=True)
        ]
        rows[0] = (rows[0][0], [])
        windows.append(rows)
    return windows


def zero_json(directory: Path, *, stage: int) -> Path:
    path = directory / f"zero{stage}.json"
    settings: dict[str, Any] = {"stage": stage}
    if stage == 3:
        settings["stage3_param_persistence_threshold"] = 0
    path.write_text(json.dumps({"zero_optimization": settings}))
    return path


def write_config(directory: Path, *, stage: int = 3, micro_batch: int = 1, dtype: str = "fp32", **sections: Any) -> Path:
    values: dict[str, Any] = {
        "method": "promptkd",
        "model": {"teacher": str(directory / "teacher"), "student": str(directory / "student"), "dtype": dtype},
        "data": {"train": "unused", "max_prompt_tokens": 32, "max_sequence_tokens": 64},
        "prompt": {"length": 5, "learning_rate": RATE},
        "generation": {"max_new_tokens": 16},
        "optimizer": {"name": "sgd", "learning_rate": RATE, "weight_decay": 0.0, "grad_clip": 0.0},
        "schedule": {"steps": NUM_STEPS, "warmup_steps": 0, "global_batch": 4, "micro_batch": micro_batch},
        "engine": {
            "student": str(zero_json(directory, stage=stage)),
            "teacher": str(zero_json(directory, stage=3)),
        },
        "run": {"dir": str(directory / "run")},
    }
    for name, section in sections.items():
        values[name] |= section
    path = directory / f"config-{stage}-{micro_batch}-{dtype}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_reference(directory: Path, windows: list[list[jobs.Pair]], *, prompt: torch.Tensor, clip: float = 0.0) -> Any:
    models = {
        name: AutoModelForCausalLM.from_pretrained(directory / name, dtype=torch.float64).eval()
        for name in ("teacher", "student")
    }
    before = {name: value.detach().clone() for name, value in models["student"].named_parameters()}
    prompt = prompt.double().clone().requires_grad_()
    start = prompt.detach().clone()
    losses = reference.train(
        models["teacher"],
        models["student"],
        prompt,
        [[reference.Row(*row) for row in rows] for rows in windows],
        num_steps=NUM_STEPS,
        vocabulary=len(AutoTokenizer.from_pretrained(directory / "student")),
        prompt_rate=RATE,
        student_rate=RATE,
        clip=clip,
    )
    updates = {name: value.detach() - before[name] for name, value in models["student"].named_parameters()}
    return updates, prompt.detach() - start, losses


def assert_same_updates(result: dict[str, Any], updates: dict[str, torch.Tensor], prompt_update: torch.Tensor) -> None:
    largest = max(update.abs().max().item() for update in updates.values())
    assert largest >= 1e-3
    for name, update in updates.items():
        ours = result["after"]["student"][name].double() - result["before"]["student"][name].double()
        assert (ours - update).abs().max().item() <= 1e-4 * largest, name
    ours = result["prompt_after"].double() - result["prompt_before"].double()
    assert prompt_update.abs().max().item() >= 1e-3
    assert (ours - prompt_update).abs().max().item() <= 1e-4 * prompt_update.abs().max().item()


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of different width, depth and padded vocabulary."""
    directory = tmp_path_factory.mktemp(request.param)
    save_tiny_model(directory / "teacher", request.param, seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", request.param, seed=2, width=32, layers=2, padding=3)
    return directory


def test_three_steps_on_two_ranks_equal_the_reference(pair: Path, ranks: Any) -> None:
    windows = make_windows(vocabulary=400)
    results = ranks(2).run(jobs.train, config_file=write_config(pair), overrides=[], windows=windows)
    updates, prompt_update, losses = run_reference(pair, windows, prompt=results[0]["prompt_before"])
    assert_same_updates(results[0], updates, prompt_update)
    for name, values in losses.items():
        assert results[0]["means"][name] == pytest.approx(values, rel=1e-4), name
    for weights in ("student", "teacher"):
        for name, value in results[0]["after"][weights].items():
            assert torch.equal(value, results[1]["after"][weights][name]), name
    assert torch.equal(results[0]["prompt_after"], results[1]["prompt_after"])
    for name, value in results[0]["before"]["teacher"].items():
        assert torch.equal(value, results[0]["after"]["teacher"][name]), name
    assert results[0]["teacher_released"]
