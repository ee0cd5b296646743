"""PromptKD's variations equal plain torch: divergences, what the prompt is tuned on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.methods import load_config
from kd.methods.base import STUDENT_ROWS, uniform
from kd.methods.promptkd import PROMPT_ROWS, PromptSettings
from tests.distributed import harness
from tests.distributed import promptkd_jobs as jobs
from tests.distributed.harness import NUM_STEPS, make_batches, write_config
from tests.distributed.test_promptkd_step import assert_same_updates
from tests.reference import plain_promptkd as reference
from tests.tiny_models import save_tiny_model

BATCHES = make_batches(vocabulary=400, seed=7)
SAMPLED = [
    [np.random.default_rng([step, row]).integers(0, 400, 2 + 2 * row).tolist() for row in range(len(rows))]
    for step, rows in enumerate(BATCHES)
]
FORWARD = reference.forward_kl
SEED = 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ablations")
    save_tiny_model(directory / "teacher", "opt", seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", "opt", seed=2, width=32, layers=2, padding=3)
    return directory


def assert_equals_the_reference(
    pair: Path,
    ranks: Any,
    *,
    overrides: list[str],
    divergences: reference.Divergences | None = None,
    tuned_on: list[list[int]] | None = None,
    micro_batch: int = 2,
) -> dict[str, Any]:
    config = write_config(pair, micro_batch=micro_batch)
    (result, other) = ranks(2).run(
        harness.train, config_file=config, overrides=overrides, batches=BATCHES, responses=SAMPLED
    )
    settings = load_config(config, overrides=overrides)
    prompt_settings = settings.section(PromptSettings)

    def row_of(step: int, row_id: int) -> reference.Row:
        prompt, truth = BATCHES[step - 1][row_id]
        keeps = uniform(settings.run.seed, step, row_id, stream=STUDENT_ROWS) < prompt_settings.student_fraction
        return reference.Row(prompt, SAMPLED[step - 1][row_id], truth=None if keeps else truth)

    rows = [[row_of(step, row_id) for row_id in range(len(rows))] for step, rows in enumerate(BATCHES, start=1)]
    shares = {row.truth is None for batch in rows for row in batch}
    assert shares == ({True} if prompt_settings.student_fraction == 1 else {False, True})
    models = {
        name: AutoModelForCausalLM.from_pretrained(pair / name, dtype=torch.float64).eval()
        for name in ("teacher", "student")
    }
    before = {name: value.detach().clone() for name, value in models["student"].named_parameters()}
    prompts = result["prompt_before"].double().clone().requires_grad_()
    losses = reference.train(
        models["teacher"],
        models["student"],
        prompts,
        rows,
        num_steps=NUM_STEPS,
        vocabulary=len(AutoTokenizer.from_pretrained(pair / "student")),
        prompt_rate=prompt_settings.learning_rate,
        student_rate=settings.optimizer.learning_rate,
        divergences=divergences,
        tuned_on=tuned_on,
    )
    updates = {name: value.detach() - before[name] for name, value in models["student"].named_parameters()}
    assert_same_updates(result, updates, prompts.detach() - result["prompt_before"].double())
    for name, values in losses.items():
        assert result["means"][name] == pytest.approx(values, rel=1e-4), name
    assert torch.equal(result["prompt_after"], other["prompt_after"])
    return dict(result)


@pytest.mark.parametrize(
    ("overrides", "divergences"),
    [
        (["prompt.kd_divergence=forward_kl"], reference.Divergences(kd=FORWARD)),
        (
            ["prompt.regularization_divergence=forward_kl", "prompt.student_divergence=forward_kl"],
            reference.Divergences(regularization=FORWARD, student=FORWARD),
        ),
    ],
    ids=["L_kd forward", "L_reg and L_student forward"],
)
def test_pairs_of_divergences(pair: Path, ranks: Any, overrides: list[str], divergences: reference.Divergences) -> None:
    """The two choices of Table 12, each away from the default, and the student's own."""
    assert_equals_the_reference(pair, ranks, overrides=overrides, divergences=divergences)


def test_a_prompt_tuned_on_the_datas_responses_for_some_rows(pair: Path, ranks: Any) -> None:
    assert_equals_the_reference(pair, ranks, overrides=["prompt.student_fraction=0.5"])


def test_a_prompt_that_rests_in_every_second_step(pair: Path, ranks: Any) -> None:
    everything = list(range(4))
    assert_equals_the_reference(pair, ranks, overrides=["prompt.every=2"], tuned_on=[everything, [], everything])


@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("num_chosen", [1, 2, 3])
def test_a_prompt_tuned_on_a_part_of_the_global_batch(
    pair: Path, ranks: Any, num_chosen: int, micro_batch: int
) -> None:
    """Also where a rank has fewer of these rows than the other one, or none, and each pass gathers the teacher."""
    starts = [int(4 * uniform(SEED, step, stream=PROMPT_ROWS)) for step in range(1, NUM_STEPS + 1)]
    assert_equals_the_reference(
        pair,
        ranks,
        overrides=[f"prompt.batch_fraction={num_chosen / 4}", "engine.gather=layer", f"run.seed={SEED}"],
        tuned_on=[[(start + index) % 4 for index in range(num_chosen)] for start in starts],
        micro_batch=micro_batch,
    )


def test_prompts_are_initialised_from_a_partitioned_teacher(pair: Path, ranks: Any) -> None:
    (values, other) = ranks(2).run(jobs.initial_prompts, config_file=write_config(pair), length=10)
    tokenizer = AutoTokenizer.from_pretrained(pair / "teacher")
    embeddings = AutoModelForCausalLM.from_pretrained(pair / "teacher").get_input_embeddings().weight.detach()
    text = tokenizer("Suppose you are a student.", add_special_tokens=False)["input_ids"]
    assert torch.equal(values["text"], embeddings[(text * 10)[:10]])
    assert torch.equal(values["padding"], embeddings[[tokenizer.pad_token_id] * 10])
    assert values["random"].std().item() == pytest.approx(embeddings.std().item(), rel=0.2)
    assert torch.equal(values["random"], other["random"]), "the same on all ranks"
