"""A MiniLLM step on real ranks equals a plain torch reference, however it is split."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from kd.methods import load_config
from tests.distributed import minillm_jobs as jobs
from tests.distributed.harness import Pair, make_batches, write_config
from tests.reference import plain_minillm as reference
from tests.tiny_models import FAMILIES, save_tiny_model

RATE = 0.1
NUM_STEPS = 3
OVERRIDES = [
    "method=minillm",
    "minillm.corpus=none",
    "minillm.inner_epochs=2",
    f"optimizer.learning_rate={RATE}",
    f"schedule.steps={NUM_STEPS}",
    "data.max_sequence_tokens=33",
    "generation.max_new_tokens=1",
]
SETTINGS = reference.Settings(
    alpha=0.2,
    gamma=0.95,
    epsilon=0.2,
    reward_scale=0.5,
    length_normalized=True,
    whitened=True,
    corpus_ratio=0.5,
    corpus_weight=1.0,
)
BATCHES = make_batches(vocabulary=400)
CORPUS = np.random.default_rng(2).integers(0, 400, 33 * 7 + 20).tolist()


def save_pair(directory: Path, family: str) -> Path:
    """A teacher and a student of different width, depth and padded vocabulary."""
    save_tiny_model(directory / "teacher", family, seed=1, width=48, layers=3, padding=16)
    save_tiny_model(directory / "student", family, seed=2, width=32, layers=2, padding=3)
    return directory


def run_reference(
    directory: Path, result: dict[str, Any], *, config_file: Path, collections: list[list[Pair]], corpus: list[int]
) -> dict[str, Tensor]:
    """The reference's updates on the rows of each step in `result`, whose losses must be the reference's."""
    pair = {
        name: AutoModelForCausalLM.from_pretrained(directory / name, dtype=torch.float64).eval()
        for name in ("teacher", "student")
    }
    config = load_config(config_file, overrides=OVERRIDES)
    steps_of_each = 2 * len(collections[0]) // config.schedule.global_batch
    text = []
    if corpus:
        loader = jobs.corpus_loader(corpus, config, rank=0, num_ranks=1)
        text = [
            [[*block.prompt_ids.tolist(), *block.response_ids.tolist()] for block in loader.batch(step).examples]
            for step in range(1, len(result["rows"]) + 1)
        ]
    losses = reference.train(
        pair["teacher"],
        pair["student"],
        collections,
        [(step // steps_of_each, rows) for step, rows in enumerate(result["rows"])],
        text,
        settings=SETTINGS,
        vocabulary=len(AutoTokenizer.from_pretrained(directory / "student")),
        rate=RATE,
    )
    for ours, theirs in zip(result["means"], losses, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    return {name: value.detach() - result["before"][name] for name, value in pair["student"].named_parameters()}


def assert_same_updates(result: dict[str, Any], updates: dict[str, Tensor]) -> None:
    largest = max(update.abs().max().item() for update in updates.values())
    assert largest >= 1e-3
    for name, update in updates.items():
        ours = result["after"][name].double() - result["before"][name].double()
        assert (ours - update).abs().max().item() <= 2e-4 * largest, name


@pytest.mark.parametrize(
    ("family", "stage", "teacher_stage"), list(zip(FAMILIES, (3, 2, 3, 1), (3, 3, 0, 0), strict=True))
)
def test_steps_of_two_collections_on_two_ranks_equal_the_reference(
    family: str, stage: int, teacher_stage: int, tmp_path: Path, ranks: Any
) -> None:
    """Both inner epochs of a collection, and the first of the next one, whose responses are scored anew."""
    config_file = write_config(save_pair(tmp_path, family), stage=stage, teacher_stage=teacher_stage, micro_batch=2)
    results = ranks(2).run(
        jobs.train,
        config_file=config_file,
        overrides=[*OVERRIDES, "minillm.rollouts=4"],
        batches=BATCHES,
        corpus=CORPUS,
        num_steps=NUM_STEPS,
    )
    updates = run_reference(tmp_path, results[0], config_file=config_file, collections=BATCHES[:2], corpus=CORPUS)
    assert_same_updates(results[0], updates)
    for name, value in results[0]["after"].items():
        assert torch.equal(value, results[1]["after"][name]), name


@pytest.fixture(scope="module")
def gpt2_pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pair(tmp_path_factory.mktemp("gpt2_pair"), "gpt2")


@pytest.mark.parametrize(("num_ranks", "micro_batch", "stage"), [(1, 4, 0), (2, 1, 2)])
def test_the_split_into_ranks_and_micro_batches_does_not_matter(
    gpt2_pair: Path, ranks: Any, num_ranks: int, micro_batch: int, stage: int
) -> None:
    """Global batches that mix the rows of a larger collection, each inner epoch in its own way; no corpus."""
    config_file = write_config(gpt2_pair, stage=stage, teacher_stage=0, micro_batch=micro_batch)
    (result, *_) = ranks(num_ranks).run(
        jobs.train,
        config_file=config_file,
        overrides=[*OVERRIDES, "minillm.rollouts=8"],
        batches=BATCHES[:2],
        corpus=[],
        num_steps=4,
    )
    first, second = result["rows"][:2], result["rows"][2:]
    assert sorted(first[0] + first[1]) == sorted(second[0] + second[1]) == list(range(8))
    assert [sorted(rows) for rows in first] != [sorted(rows) for rows in second]
    updates = run_reference(
        gpt2_pair, result, config_file=config_file, collections=[BATCHES[0] + BATCHES[1]], corpus=[]
    )
    assert_same_updates(result, updates)


def test_a_global_batch_without_a_response_is_skipped(gpt2_pair: Path, ranks: Any) -> None:
    silent = [[(prompt, []) for prompt, _ in rows] for rows in BATCHES]
    (result, _) = ranks(2).run(
        jobs.train,
        config_file=write_config(gpt2_pair, stage=2, teacher_stage=0),
        overrides=[*OVERRIDES, "minillm.rollouts=4"],
        batches=silent,
        corpus=CORPUS,
        num_steps=3,
    )
    assert result["means"] == [{}, {}, {}]
    for name, value in result["before"].items():
        assert torch.equal(value, result["after"][name]), name
