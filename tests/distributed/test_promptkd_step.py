"""A PromptKD step on real ranks equals a plain torch reference, for every split and ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed import harness
from tests.distributed import promptkd_jobs as jobs
from tests.distributed.harness import (
    NUM_STEPS,
    RATE,
    make_batches,
    write_config,
)
from tests.reference import plain_promptkd as reference
from tests.tiny_experts import save_tiny_experts
from tests.tiny_models import FAMILIES, STATE_FAMILIES, save_tiny_model


def run_reference(
    directory: Path,
    batches: list[list[harness.Pair]],
    *,
    prompt: torch.Tensor,
    clip: float = 0.0,
    tuned_on: list[list[int]] | None = None,
) -> Any:
    models = {
        # Experts one by one: torch multiplies groups of matrices in float64 nowhere.
        name: AutoModelForCausalLM.from_pretrained(
            directory / name, dtype=torch.float64, experts_implementation="eager", trust_remote_code=True
        ).eval()
        for name in ("teacher", "student")
    }
    before = {name: value.detach().clone() for name, value in models["student"].named_parameters()}
    prompt = prompt.double().clone().requires_grad_()
    start = prompt.detach().clone()
    losses = reference.train(
        models["teacher"],
        models["student"],
        prompt,
        [[reference.Row(*row) for row in rows] for rows in batches],
        num_steps=NUM_STEPS,
        vocabulary=len(AutoTokenizer.from_pretrained(directory / "student")),
        prompt_rate=RATE,
        student_rate=RATE,
        clip=clip,
        tuned_on=tuned_on,
    )
    updates = {name: value.detach() - before[name] for name, value in models["student"].named_parameters()}
    return updates, prompt.detach() - start, losses


def assert_same_updates(result: dict[str, Any], updates: dict[str, torch.Tensor], prompt_update: torch.Tensor) -> None:
    harness.assert_same_updates(result["before"]["student"], result["after"]["student"], updates)
    before, after = ({"P": result[f"prompt_{moment}"]} for moment in ("before", "after"))
    harness.assert_same_updates(before, after, {"P": prompt_update})


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of different width, depth and padded vocabulary."""
    directory = tmp_path_factory.mktemp(request.param)
    save_tiny_model(directory / "teacher", request.param, seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", request.param, seed=2, width=32, layers=2, padding=3)
    return directory


def test_three_steps_on_two_ranks_equal_the_reference(pair: Path, ranks: Any) -> None:
    batches = make_batches(vocabulary=400)
    results = ranks(2).run(harness.train, config_file=write_config(pair), overrides=[], batches=batches)
    updates, prompt_update, losses = run_reference(pair, batches, prompt=results[0]["prompt_before"])
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


GEMMA_2 = {"num_key_value_heads": 2, "head_dim": 24, "query_pre_attn_scalar": 24, "final_logit_softcapping": 2.0}
EXPERTS = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        # Gemma 2 caps its logits, Granite divides them.
        (("gemma2", GEMMA_2), ("granite", {"logits_scaling": 4.0})),
        (("mixtral", EXPERTS), ("mixtral", EXPERTS)),
        (("falcon_h1", STATE_FAMILIES["falcon_h1"]), ("mamba", {})),
    ],
    ids=["mapped-logits", "experts", "states"],
)
def test_other_families_equal_the_reference(
    teacher: tuple[str, Any], student: tuple[str, Any], tmp_path: Path, ranks: Any
) -> None:
    """The reference takes all from the models' own forward passes."""
    save_tiny_model(tmp_path / "teacher", teacher[0], seed=1, width=48, padding=16, **teacher[1])
    save_tiny_model(tmp_path / "student", student[0], seed=2, padding=3, **student[1])
    batches = make_batches(vocabulary=400)
    results = ranks(2).run(harness.train, config_file=write_config(tmp_path), overrides=[], batches=batches)
    updates, prompt_update, losses = run_reference(tmp_path, batches, prompt=results[0]["prompt_before"])
    assert_same_updates(results[0], updates, prompt_update)
    for name, values in losses.items():
        assert results[0]["means"][name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.parametrize("gather", ["layer", "model"])
def test_experts_in_a_list_equal_the_reference(tmp_path: Path, ranks: Any, gather: str) -> None:
    """Ranks use different ones, and must gather them and reduce their gradients together."""
    save_tiny_experts(tmp_path / "teacher", seed=1, width=48, padding=16)
    save_tiny_experts(tmp_path / "student", seed=2, padding=3)
    batches = make_batches(vocabulary=400)
    config_file = write_config(tmp_path, model={"trust_remote_code": True}, engine={"gather": gather})
    results = ranks(2).run(harness.train, config_file=config_file, overrides=[], batches=batches, timeout=120)
    updates, prompt_update, _ = run_reference(tmp_path, batches, prompt=results[0]["prompt_before"])
    assert_same_updates(results[0], updates, prompt_update)


@pytest.fixture(scope="module")
def llama_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("llama_pair")
    save_tiny_model(directory / "teacher", "llama", seed=1, width=48, layers=3, tie_word_embeddings=False)
    save_tiny_model(directory / "student", "llama", seed=2, width=32, layers=2, tie_word_embeddings=True)
    return directory


@pytest.fixture(scope="module")
def llama_reference(llama_pair: Path, ranks: Any) -> Any:
    """The reference's updates for one fixed set of batches, and the prompt that every run starts from."""
    batches = make_batches(vocabulary=400, seed=1)
    start = ranks(1).run(harness.train, config_file=write_config(llama_pair, micro_batch=4), overrides=[], batches=[])
    updates, prompt_update, _ = run_reference(llama_pair, batches, prompt=start[0]["prompt_before"])
    return batches, updates, prompt_update


@pytest.mark.parametrize(("num_ranks", "micro_batch"), [(1, 1), (1, 4), (2, 1), (2, 2)])
def test_the_split_into_ranks_and_micro_batches_does_not_matter(
    llama_pair: Path, llama_reference: Any, ranks: Any, num_ranks: int, micro_batch: int
) -> None:
    batches, updates, prompt_update = llama_reference
    config = write_config(llama_pair, micro_batch=micro_batch)
    results = ranks(num_ranks).run(harness.train, config_file=config, overrides=[], batches=batches)
    assert_same_updates(results[0], updates, prompt_update)


@pytest.mark.parametrize("gather", ["layer", "model"])
@pytest.mark.parametrize("packing", [False, True])
def test_micro_batches_of_tokens_and_packing_do_not_matter(
    llama_pair: Path, llama_reference: Any, ranks: Any, packing: bool, gather: str
) -> None:
    batches, updates, prompt_update = llama_reference
    # The ranks have unequal numbers of micro-batches, and inference batches of other sizes.
    overrides = ["schedule.micro_tokens=30", f"schedule.packing={packing}", "engine.inference_batch_tokens=45"]
    overrides.append(f"engine.gather={gather}")
    results = ranks(2).run(harness.train, config_file=write_config(llama_pair), overrides=overrides, batches=batches)
    assert_same_updates(results[0], updates, prompt_update)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_students_zero_stage_does_not_matter(
    llama_pair: Path, llama_reference: Any, ranks: Any, stage: int
) -> None:
    batches, updates, prompt_update = llama_reference
    config = write_config(llama_pair, stage=stage)
    results = ranks(2).run(harness.train, config_file=config, overrides=[], batches=batches)
    assert_same_updates(results[0], updates, prompt_update)


@pytest.mark.parametrize("max_tokens", [1, 30, 10_000])
def test_the_split_into_inference_batches_does_not_matter(
    llama_pair: Path, llama_reference: Any, ranks: Any, max_tokens: int
) -> None:
    """Row by row, split differently on both ranks, and all at once."""
    batches, updates, prompt_update = llama_reference
    overrides = [f"engine.inference_batch_tokens={max_tokens}", "engine.gather=layer"]
    results = ranks(2).run(harness.train, config_file=write_config(llama_pair), overrides=overrides, batches=batches)
    assert_same_updates(results[0], updates, prompt_update)


def test_gathering_once_or_layer_by_layer_does_not_matter(llama_pair: Path, llama_reference: Any, ranks: Any) -> None:
    batches, updates, prompt_update = llama_reference
    num_bytes = {}
    for gather in ("layer", "model"):
        results = ranks(2).run(
            harness.train,
            config_file=write_config(llama_pair),
            overrides=[f"engine.gather={gather}"],
            batches=batches,
        )
        assert_same_updates(results[0], updates, prompt_update)
        assert results[0]["released"] == {"student": True, "teacher": True}
        overrides = [f"engine.gather={gather}"]
        count = {"config_file": write_config(llama_pair), "overrides": overrides, "batches": batches}
        num_bytes[gather] = ranks(2).run(jobs.count_bytes, **count)[0]
    # Two micro-batches with two and more forward passes each, against one gathering for all of them.
    assert num_bytes["model"]["gathered"] < 0.6 * num_bytes["layer"]["gathered"]
    # Two micro-batches of the prompt and two of the student, against one gradient of each.
    assert num_bytes["model"]["reduced"] <= 0.51 * num_bytes["layer"]["reduced"]


def test_one_gathering_of_the_student_serves_rollouts_and_training(llama_pair: Path, ranks: Any) -> None:
    batches = make_batches(vocabulary=400, seed=2)
    overrides = ["engine.gather=model", "generation.layout=gathered", "generation.max_new_tokens=4"]
    count = {"config_file": write_config(llama_pair), "overrides": overrides, "batches": batches}
    fixed, sampled = (ranks(2).run(jobs.count_bytes, **count, rolls_out=rolls_out)[0] for rolls_out in (False, True))
    # The copy that decodes and the head of the kept hidden states need no gathering of their own.
    assert 0 < sampled["gathered"] <= fixed["gathered"]


def test_a_step_that_fails_leaves_no_gradient(llama_pair: Path, llama_reference: Any, ranks: Any) -> None:
    batches, updates, prompt_update = llama_reference
    config = write_config(llama_pair)
    overrides = ["engine.gather=model"]
    results = ranks(2).run(jobs.train_after_a_failure, config_file=config, overrides=overrides, batches=batches)
    # A rank that failed alone would wait for the others here.
    assert results[0]["reduced_in_vain"] == 0
    assert_same_updates(results[0], updates, prompt_update)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_teacher_that_is_not_partitioned_teaches_the_same(
    llama_pair: Path, llama_reference: Any, ranks: Any, dtype: str
) -> None:
    batches, updates, prompt_update = llama_reference
    config = write_config(llama_pair, stage=0, teacher_stage=0, dtype=dtype)
    results = ranks(2).run(harness.train, config_file=config, overrides=[], batches=batches)
    if dtype == "fp32":
        assert_same_updates(results[0], updates, prompt_update)
    else:
        moved = (results[0]["prompt_after"] - results[0]["prompt_before"]).double()
        # These random models amplify rounding; a wrong scale would be off by a factor of two.
        assert (moved - prompt_update).norm() < 0.35 * prompt_update.norm()


@pytest.mark.parametrize("stage", [0, 3])
def test_clipping_equals_the_reference(llama_pair: Path, ranks: Any, stage: int) -> None:
    batches = make_batches(vocabulary=400, seed=2)
    config = write_config(llama_pair, stage=stage)
    clip = 0.05
    results = ranks(2).run(
        harness.train, config_file=config, overrides=[f"optimizer.grad_clip={clip}"], batches=batches
    )
    updates, prompt_update, _ = run_reference(llama_pair, batches, prompt=results[0]["prompt_before"], clip=clip)
    assert_same_updates(results[0], updates, prompt_update)
    assert results[0]["norms"][0] > clip, "the gradient must be large enough to be clipped"


def test_checkpointing_recomputes_and_changes_nothing(llama_pair: Path, llama_reference: Any, ranks: Any) -> None:
    batches, updates, prompt_update = llama_reference
    counts = {}
    for switch in ("true", "false"):
        results = ranks(2).run(
            jobs.train_counting_layers,
            config_file=write_config(llama_pair, micro_batch=2),
            overrides=[f"model.gradient_checkpointing={switch}"],
            batches=batches,
        )
        assert_same_updates(results[0], updates, prompt_update)
        counts[switch] = results[0]["layer_calls"]
    # One step with one micro-batch. Student: outputs, training. Teacher: plain (not in the last step, where L_reg has
    # no weight), prompted, P'.
    assert counts["false"] == {"student": 2 * NUM_STEPS, "teacher": 3 * NUM_STEPS - 1}
    assert counts["true"] == {"student": 3 * NUM_STEPS, "teacher": 4 * NUM_STEPS - 1}


def test_outputs_are_without_the_students_dropout(tmp_path: Path, ranks: Any) -> None:
    save_tiny_model(tmp_path / "teacher", "gpt2", seed=1)
    save_tiny_model(tmp_path / "student", "gpt2", seed=2)
    config = write_config(tmp_path, stage=0, micro_batch=4)
    (agree,) = ranks(1).run(jobs.hidden_twice, config_file=config, rows=make_batches(vocabulary=400)[0])
    assert agree == {"inference": True, "training": False}


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_each_phase_moves_its_own_parameters_only(llama_pair: Path, ranks: Any, num_ranks: int) -> None:
    batches = make_batches(vocabulary=400, seed=3)
    config = write_config(llama_pair, micro_batch=2)
    (moved, *_) = ranks(num_ranks).run(jobs.what_moves, config_file=config, rows=batches[0])
    assert moved == {"prompt step": {"prompt"}, "student step": {"student"}}


def test_a_batch_without_a_response_is_skipped(llama_pair: Path, ranks: Any) -> None:
    batches = [[(prompt, []) for prompt, _ in rows] for rows in make_batches(vocabulary=400)[:1]]
    (result, _) = ranks(2).run(harness.train, config_file=write_config(llama_pair), overrides=[], batches=batches)
    assert result["means"] == {}
    assert torch.equal(result["prompt_before"], result["prompt_after"])
    for name, value in result["before"]["student"].items():
        assert torch.equal(value, result["after"]["student"][name]), name


@pytest.mark.parametrize(
    ("regularization", "weights"), [("linear", [2 / 3, 1 / 3, 0.0]), ("constant", [1.0, 1.0, 1.0]), ("none", [0, 0, 0])]
)
def test_the_regularization_weight_follows_the_schedule(
    llama_pair: Path, ranks: Any, regularization: str, weights: list[float]
) -> None:
    overrides = [f"prompt.regularization={regularization}"]
    (found,) = ranks(1).run(
        jobs.regularization_weights, config_file=write_config(llama_pair, stage=0), overrides=overrides
    )
    assert found == pytest.approx(weights)
