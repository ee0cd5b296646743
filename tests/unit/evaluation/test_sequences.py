"""Samples and their divergences at every token, against a plain loop without padding or batches."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from evaluation.command_options import AnalysisOptions
from evaluation.lineup import line_up
from evaluation.sequences import Work, sample, token_divergences
from kd.data.batch import TokenSequence
from kd.data.encoding import Example
from kd.distributed import World
from kd.losses.divergences import forward_kl, reverse_kl
from kd.losses.fused import chunk_rows
from kd.models.soft_prompt import SoftPrompt
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import NUM_ENTRIES

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
OPTIONS = AnalysisOptions(
    rows=10,
    template="alpaca",
    max_prompt_tokens=64,
    max_new_tokens=9,
    seeds=(3, 1),
    resamples=10,
    max_batch_tokens=60,
    micro_batch=3,
    dtype="fp32",
    trust_remote_code=False,
)
LENGTHS = ((5, 4), (1, 9), (12, 1), (3, 6), (7, 9))
"""Of prompt and response; an even number would fit the micro-batches."""


def random_ids(length: int, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, NUM_ENTRIES, size=length).astype(np.int32)


def example(row_id: int, length: int) -> Example:
    ids = random_ids(length, seed=row_id)
    return Example(row_id=row_id, prompt="", prompt_ids=ids, response_ids=None, references=(), source=f"f:{row_id}")


SEQUENCES = [
    TokenSequence(row_id=row, prompt_ids=random_ids(prompt, seed=row), response_ids=random_ids(response, seed=50 + row))
    for row, (prompt, response) in enumerate(LENGTHS)
]
EXAMPLES = [example(row, prompt) for row, (prompt, _) in enumerate(LENGTHS)]


def work_with(teacher: Path, student: Path, *, options: AnalysisOptions = OPTIONS) -> Work:
    return Work(lineup=line_up(str(teacher), [str(student)], options=options), world=ALONE)


@torch.no_grad()
def plain_log_probs(directory: Path, sequence: TokenSequence, prompt: Tensor | None) -> Tensor:
    """What a model says before each response token, over the tokenizer's entries [T, V] in float64."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    ids = torch.from_numpy(np.append(sequence.prompt_ids, sequence.response_ids)).long()
    embeds = model.get_input_embeddings()(ids)
    if prompt is not None:
        embeds = torch.cat([prompt.double(), embeds])
    logits = model(inputs_embeds=embeds[None]).logits[0, :, :NUM_ENTRIES]
    return logits.log_softmax(-1)[-len(sequence.response_ids) - 1 : -1]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_divergences_at_every_token_equal_a_plain_loop(family: str, tmp_path: Path) -> None:
    teacher = save_tiny_model(tmp_path / "teacher", family, seed=1, padding=30)
    student = save_tiny_model(tmp_path / "student", family, seed=2, layers=1)
    prompt = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    work = work_with(teacher, student)
    prompted = work.lineup.load(str(teacher), world=ALONE, soft_prompt=SoftPrompt(prompt))
    found = token_divergences(
        work,
        work.lineup.load(str(student), world=ALONE),
        [replace(prompted, soft_prompt=None), prompted],
        SEQUENCES,
        divergences=[forward_kl, reverse_kl],
        what="",
    )
    for sequence, values in zip(SEQUENCES, found, strict=True):
        q = plain_log_probs(student, sequence, None)
        assert values.shape == (2, 2, len(sequence.response_ids))
        for place, prefix in enumerate((None, prompt)):
            p = plain_log_probs(teacher, sequence, prefix)
            expected = [functional.kl_div(b, a, reduction="none", log_target=True).sum(-1) for a, b in ((p, q), (q, p))]
            np.testing.assert_allclose(values[place], torch.stack(expected).numpy(), atol=1e-5, rtol=1e-4)


def test_a_small_chunk_of_the_vocabulary_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = (save_tiny_model(tmp_path / str(seed), "gpt2", seed=seed) for seed in (1, 2))
    work = work_with(teacher, student)
    models = [work.lineup.load(str(path), world=ALONE) for path in (student, teacher)]

    def measure() -> list[np.ndarray]:
        return token_divergences(work, models[0], models[1:], SEQUENCES, divergences=[forward_kl], what="")

    whole = measure()
    monkeypatch.setattr("evaluation.sequences.chunk_rows", partial(chunk_rows, byte_budget=2 * 4 * NUM_ENTRIES))
    for one, other in zip(whole, measure(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def response_ids(samples: Sequence[Sequence[TokenSequence]]) -> list[list[list[int]]]:
    return [[one.response_ids.tolist() for one in of_request] for of_request in samples]


def test_a_sample_depends_on_its_seed_and_row_alone(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, "gpt2", seed=1)
    work = work_with(directory, directory)
    model = work.lineup.load(str(directory), world=ALONE)
    together = response_ids(sample(work, model, EXAMPLES, max_new_tokens=9, what=""))
    assert [len(of_request) for of_request in together] == [2] * len(EXAMPLES)
    assert all(first != second for first, second in together)
    swapped = work_with(directory, directory, options=replace(OPTIONS, seeds=(1, 3), max_batch_tokens=10_000))
    assert response_ids(sample(swapped, model, EXAMPLES[::-1], max_new_tokens=9, what=""))[::-1] == [
        [second, first] for first, second in together
    ]
    # A lower limit cuts the samples, and leaves them as they are otherwise.
    shorter = response_ids(sample(work, model, EXAMPLES, max_new_tokens=4, what=""))
    assert shorter == [[ids[:4] for ids in of_request] for of_request in together]


def test_samples_follow_their_own_prompts(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, "gpt2", seed=1)
    work = work_with(directory, directory)
    samples = sample(work, work.lineup.load(str(directory), world=ALONE), EXAMPLES, max_new_tokens=2, what="")
    for row, of_request in zip(EXAMPLES, samples, strict=True):
        for one in of_request:
            assert (one.row_id, one.prompt_ids.tolist()) == (row.row_id, row.prompt_ids.tolist())
