"""A PromptKD step on real ranks equals a plain torch reference, however it is split and sharded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.config.methods import PromptConfig
from kd.methods.promptkd import regularization_weight
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


def write_config(
    directory: Path,
    *,
    stage: int = 3,
    teacher_stage: int = 3,
    micro_batch: int = 1,
    dtype: str = "fp32",
    **sections: Any,
) -> Path:
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
            "teacher": str(zero_json(directory, stage=teacher_stage)),
        },
        "run": {"dir": str(directory / "run")},
    }
    for name, section in sections.items():
        values[name] |= section
    path = directory / f"config-{stage}-{teacher_stage}-{micro_batch}-{dtype}.yaml"
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
    assert results[0]["released"] == {"student": True, "teacher": True}


@pytest.fixture(scope="module")
def llama_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama_pair")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=48, layers=3, tie_word_embeddings=False)
    save_tiny_model(directory / "student", "llama", seed=2, width=32, layers=2, tie_word_embeddings=True)
    return directory


@pytest.fixture(scope="module")
def llama_reference(llama_pair: Path, ranks: Any) -> Any:
    """The reference's updates for one fixed set of windows, and the prompt that every run starts from."""
    windows = make_windows(vocabulary=400, seed=1)
    start = ranks(1).run(jobs.train, config_file=write_config(llama_pair, micro_batch=4), overrides=[], windows=[])
    updates, prompt_update, _ = run_reference(llama_pair, windows, prompt=start[0]["prompt_before"])
    return windows, updates, prompt_update


@pytest.mark.parametrize(("num_ranks", "micro_batch"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_the_split_into_ranks_and_micro_batches_does_not_matter(
    llama_pair: Path, llama_reference: Any, ranks: Any, num_ranks: int, micro_batch: int
) -> None:
    windows, updates, prompt_update = llama_reference
    config = write_config(llama_pair, micro_batch=micro_batch)
    results = ranks(num_ranks).run(jobs.train, config_file=config, overrides=[], windows=windows)
    assert_same_updates(results[0], updates, prompt_update)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_students_zero_stage_does_not_matter(
    llama_pair: Path, llama_reference: Any, ranks: Any, stage: int
) -> None:
    windows, updates, prompt_update = llama_reference
    config = write_config(llama_pair, stage=stage)
    results = ranks(2).run(jobs.train, config_file=config, overrides=[], windows=windows)
    assert_same_updates(results[0], updates, prompt_update)


@pytest.mark.parametrize("pass_tokens", [1, 30, 10_000])
def test_the_cut_of_passes_without_gradient_does_not_matter(
    llama_pair: Path, llama_reference: Any, ranks: Any, pass_tokens: int
) -> None:
    """Row by row, cut somewhere (not at the same place on both ranks), and all at once."""
    windows, updates, prompt_update = llama_reference
    overrides = [f"engine.pass_tokens={pass_tokens}", "engine.gather=layer"]
    results = ranks(2).run(jobs.train, config_file=write_config(llama_pair), overrides=overrides, windows=windows)
    assert_same_updates(results[0], updates, prompt_update)


def test_what_is_gathered_at_a_time_does_not_matter(llama_pair: Path, llama_reference: Any, ranks: Any) -> None:
    windows, updates, prompt_update = llama_reference
    num_bytes = {}
    for gather in ("layer", "model"):
        results = ranks(2).run(
            jobs.train, config_file=write_config(llama_pair), overrides=[f"engine.gather={gather}"], windows=windows
        )
        assert_same_updates(results[0], updates, prompt_update)
        assert results[0]["released"] == {"student": True, "teacher": True}
        num_bytes[gather] = results[0]["num_bytes"]
    # Two micro-batches with two and more passes each, against one gathering for all of them.
    assert num_bytes["model"]["gathered"] < 0.6 * num_bytes["layer"]["gathered"]
    # Two micro-batches of the prompt and two of the student, against one gradient of each.
    assert num_bytes["model"]["reduced"] <= 0.51 * num_bytes["layer"]["reduced"]


def test_a_window_that_fails_leaves_no_gradient(llama_pair: Path, llama_reference: Any, ranks: Any) -> None:
    windows, updates, prompt_update = llama_reference
    config = write_config(llama_pair)
    overrides = ["engine.gather=model"]
    results = ranks(2).run(jobs.train, config_file=config, overrides=overrides, windows=windows, fails_first=True)
    # A rank that failed alone would wait for the others here.
    assert results[0]["reduced_in_vain"] == 0
    assert_same_updates(results[0], updates, prompt_update)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_teacher_that_is_not_sharded_teaches_the_same(
    llama_pair: Path, llama_reference: Any, ranks: Any, dtype: str
) -> None:
    windows, updates, prompt_update = llama_reference
    config = write_config(llama_pair, stage=0, teacher_stage=0, dtype=dtype)
    results = ranks(2).run(jobs.train, config_file=config, overrides=[], windows=windows)
    if dtype == "fp32":
        assert_same_updates(results[0], updates, prompt_update)
    else:
        moved = (results[0]["prompt_after"] - results[0]["prompt_before"]).double()
        # These random models amplify rounding; a wrong scale would be off by a factor of two.
        assert (moved - prompt_update).norm() < 0.35 * prompt_update.norm()


@pytest.mark.parametrize("stage", [0, 3])
def test_clipping_equals_the_reference(llama_pair: Path, ranks: Any, stage: int) -> None:
    windows = make_windows(vocabulary=400, seed=2)
    config = write_config(llama_pair, stage=stage)
    clip = 0.05
    results = ranks(2).run(jobs.train, config_file=config, overrides=[f"optimizer.grad_clip={clip}"], windows=windows)
    updates, prompt_update, _ = run_reference(llama_pair, windows, prompt=results[0]["prompt_before"], clip=clip)
    assert_same_updates(results[0], updates, prompt_update)
    assert results[0]["norms"][0] > clip, "the gradient must be large enough to be clipped"


def test_checkpointing_recomputes_and_changes_nothing(llama_pair: Path, llama_reference: Any, ranks: Any) -> None:
    windows, updates, prompt_update = llama_reference
    counts = {}
    for switch in ("true", "false"):
        results = ranks(2).run(
            jobs.train_counting_layers,
            config_file=write_config(llama_pair, micro_batch=2),
            overrides=[f"model.gradient_checkpointing={switch}"],
            windows=windows,
        )
        assert_same_updates(results[0], updates, prompt_update)
        counts[switch] = results[0]["layer_calls"]
    # One step with one micro-batch. Student: guidance, training. Teacher: plain, prompted, P'.
    assert counts["false"] == {"student": 2 * NUM_STEPS, "teacher": 3 * NUM_STEPS}
    assert counts["true"] == {"student": 3 * NUM_STEPS, "teacher": 4 * NUM_STEPS}


def test_guidance_is_without_the_students_dropout(tmp_path: Path, ranks: Any) -> None:
    save_tiny_model(tmp_path / "teacher", "gpt2", seed=1)
    save_tiny_model(tmp_path / "student", "gpt2", seed=2)
    config = write_config(tmp_path, stage=0, micro_batch=4)
    (agree,) = ranks(1).run(jobs.hidden_twice, config_file=config, rows=make_windows(vocabulary=400)[0])
    assert agree == {"guidance": True, "training": False}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_each_phase_moves_its_own_parameters_only(llama_pair: Path, ranks: Any, num_ranks: int) -> None:
    windows = make_windows(vocabulary=400, seed=3)
    config = write_config(llama_pair, micro_batch=2)
    (moved, *_) = ranks(num_ranks).run(jobs.what_moves, config_file=config, rows=windows[0])
    assert moved == {"prompt step": {"prompt"}, "student step": {"student"}}


def test_a_window_without_a_response_is_skipped(llama_pair: Path, ranks: Any) -> None:
    windows = [[(prompt, []) for prompt, _ in rows] for rows in make_windows(vocabulary=400)[:1]]
    (result, _) = ranks(2).run(jobs.train, config_file=write_config(llama_pair), overrides=[], windows=windows)
    assert result["means"] == {}
    assert torch.equal(result["prompt_before"], result["prompt_after"])
    for name, value in result["before"]["student"].items():
        assert torch.equal(value, result["after"]["student"][name]), name


def test_regularization_weight_falls_from_almost_one_to_zero() -> None:
    weights = [regularization_weight(k, num_steps=4, settings=PromptConfig()) for k in (1, 2, 3, 4)]
    assert weights == [0.75, 0.5, 0.25, 0.0]
    assert regularization_weight(1, num_steps=4, settings=PromptConfig(regularization="constant")) == 1.0
    assert regularization_weight(1, num_steps=4, settings=PromptConfig(regularization="none")) == 0.0
