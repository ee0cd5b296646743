"""PromptKD's variations equal plain torch: divergences, what the prompt is tuned on, a prompt for each group."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.config.load import read_config
from kd.data.groups import RowGroups
from kd.methods.targets import is_answered_by_student
from kd.models.soft_prompt import load_soft_prompt
from tests.distributed import promptkd_ablation_jobs as jobs
from tests.distributed import run_jobs
from tests.distributed.test_promptkd_step import NUM_STEPS, RATE, assert_same_updates, make_windows, write_config
from tests.reference import plain_promptkd as reference
from tests.tiny_models import save_tiny_model

WINDOWS = make_windows(vocabulary=400, seed=7)
SAMPLED = [
    [np.random.default_rng([step, row]).integers(0, 400, 2 + 2 * row).tolist() for row in range(len(rows))]
    for step, rows in enumerate(WINDOWS)
]
ROW_GROUPS = RowGroups(names=("plural", "sum"), of_row=(0, 1, 1, 0))
FORWARD = reference.forward_kl


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
    groups: RowGroups | None = None,
    divergences: reference.Divergences | None = None,
) -> dict[str, Any]:
    config = write_config(pair, micro_batch=2)
    (result, other) = ranks(2).run(
        jobs.train, config_file=config, overrides=overrides, windows=WINDOWS, sampled=SAMPLED, groups=groups
    )
    settings = read_config(config, overrides=overrides)

    def row_of(step: int, row_id: int) -> reference.Row:
        prompt, truth = WINDOWS[step - 1][row_id]
        keeps = is_answered_by_student(
            row_id, seed=settings.run.seed, step=step, student_fraction=settings.prompt.student_fraction
        )
        return reference.Row(
            prompt,
            SAMPLED[step - 1][row_id],
            group=0 if groups is None else groups.of_row[row_id],
            truth=None if keeps else truth,
        )

    rows = [[row_of(step, row_id) for row_id in range(len(rows))] for step, rows in enumerate(WINDOWS, start=1)]
    shares = {row.truth is None for window in rows for row in window}
    assert shares == ({True} if settings.prompt.student_fraction == 1 else {False, True})
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
        prompt_rate=settings.prompt.learning_rate,
        student_rate=settings.optimizer.learning_rate,
        divergences=divergences,
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


def test_a_prompt_for_each_group_of_rows(pair: Path, ranks: Any) -> None:
    """With a learning rate of its own."""
    overrides = [f"prompt.learning_rate={RATE / 2}"]
    result = assert_equals_the_reference(pair, ranks, overrides=overrides, groups=ROW_GROUPS)
    first, second = result["prompt_after"]
    assert torch.equal(*result["prompt_before"]), "both start as the same text"
    assert (first - second).abs().max() > 1e-3, "and follow their own rows"


def test_prompts_start_as_configured_from_a_sharded_teacher(pair: Path, ranks: Any) -> None:
    (values, other) = ranks(2).run(jobs.initial_prompts, config_file=write_config(pair), length=10)
    tokenizer = AutoTokenizer.from_pretrained(pair / "teacher")
    embeddings = AutoModelForCausalLM.from_pretrained(pair / "teacher").get_input_embeddings().weight.detach()
    text = tokenizer("Suppose you are a student.", add_special_tokens=False)["input_ids"]
    assert torch.equal(values["text"], embeddings[(text * 10)[:10]])
    assert torch.equal(values["padding"], embeddings[[tokenizer.pad_token_id] * 10])
    assert values["random"].std().item() == pytest.approx(embeddings.std().item(), rel=0.2)
    assert torch.equal(values["random"], other["random"]), "the same on all ranks"


def test_a_run_writes_a_prompt_for_each_group(pair: Path, ranks: Any) -> None:
    rows = [{"instruction": f"Say {i}.", "kind": ("a/b", "a b")[i % 2]} for i in range(8)]
    data = pair / "grouped.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = pair / "run.yaml"
    values = yaml.safe_load(write_config(pair).read_text())
    values["data"] |= {"train": str(data), "max_prompt_tokens": 100, "max_sequence_tokens": 110}
    values["generation"] |= {"max_new_tokens": 4}
    values["schedule"] |= {"steps": 2}
    config.write_text(yaml.safe_dump(values))
    overrides = ["data.group=kind", f"run.dir={pair / 'run'}"]
    assert ranks(2).run(run_jobs.run, config_file=config, overrides=overrides) == [None, None]
    assert "a soft prompt for each kind: a b (4 rows), a/b (4 rows)" in (pair / "run" / "log.txt").read_text()
    files = sorted((pair / "run" / "final" / "soft_prompts").iterdir())
    assert [path.name for path in files] == ["000-a-b.safetensors", "001-a-b.safetensors"]
    prompts = [load_soft_prompt(path) for path in files]
    assert [origin.group for _, origin in prompts] == ["a b", "a/b"]
    assert not torch.equal(prompts[0][0].values, prompts[1][0].values)
    assert not (pair / "run" / "final" / "soft_prompt.safetensors").exists()
