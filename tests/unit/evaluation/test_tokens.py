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

from evaluation.analysis.tokens import TokenScores, sample_sequences, score_tokens
from evaluation.models import EvaluatedModel, ModelSet, find_models
from evaluation.settings import Loading, Sampling
from kd.data.batch import TokenSequence
from kd.data.encoding import Example
from kd.distributed import World
from kd.losses.divergences import Divergence, forward_kl, reverse_kl
from kd.losses.outputs import chunk_rows
from kd.models.soft_prompt import SoftPrompt
from tests.tiny_models import save_tiny_model
from tests.tiny_tokenizers import NUM_ENTRIES

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
SAMPLING = Sampling(max_new_tokens=9, seeds=(3, 1), max_batch_tokens=60)
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


def models_in(teacher: Path, student: Path) -> ModelSet:
    return find_models([str(teacher), str(student)], loading=Loading(dtype="fp32"), world=ALONE)


def scores(
    student: EvaluatedModel, teachers: Sequence[EvaluatedModel], *, divergences: Sequence[Divergence]
) -> list[TokenScores]:
    return score_tokens(student, teachers, SEQUENCES, divergences=divergences, micro_batch=3, label="")


@torch.no_grad()
def plain_log_probs(directory: Path, sequence: TokenSequence, prompt: Tensor | None) -> Tensor:
    """The distribution before each response token, over the tokenizer's entries [T, V] in float64."""
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
    models = models_in(teacher, student)
    prompted = models.load(str(teacher), soft_prompt=SoftPrompt(prompt))
    teachers = [replace(prompted, soft_prompt=None), prompted]
    found = scores(models.load(str(student)), teachers, divergences=[forward_kl, reverse_kl])
    for sequence, of_sequence in zip(SEQUENCES, found, strict=True):
        q = plain_log_probs(student, sequence, None)
        values = of_sequence.divergences
        nats = -q[range(len(q)), sequence.response_ids.astype(int)].numpy()
        np.testing.assert_allclose(of_sequence.cross_entropy, nats, atol=1e-5, rtol=1e-4)
        assert values.shape == (2, 2, len(sequence.response_ids))
        for index, prefix in enumerate((None, prompt)):
            p = plain_log_probs(teacher, sequence, prefix)
            expected = [functional.kl_div(b, a, reduction="none", log_target=True).sum(-1) for a, b in ((p, q), (q, p))]
            np.testing.assert_allclose(values[index], torch.stack(expected).numpy(), atol=1e-5, rtol=1e-4)


def test_a_small_chunk_of_the_vocabulary_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, student = (save_tiny_model(tmp_path / str(seed), "gpt2", seed=seed) for seed in (1, 2))
    models = models_in(teacher, student)
    loaded = [models.load(str(path)) for path in (student, teacher)]
    unchunked = scores(loaded[0], loaded[1:], divergences=[forward_kl])
    monkeypatch.setattr("evaluation.analysis.tokens.chunk_rows", partial(chunk_rows, byte_budget=2 * 4 * NUM_ENTRIES))
    for one, other in zip(unchunked, scores(loaded[0], loaded[1:], divergences=[forward_kl]), strict=True):
        np.testing.assert_allclose(one.divergences, other.divergences, atol=1e-6)


def response_ids(samples: Sequence[Sequence[TokenSequence]]) -> list[list[list[int]]]:
    return [[one.response_ids.tolist() for one in of_request] for of_request in samples]


def test_samples_of_all_seeds_follow_their_prompts(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path, "gpt2", seed=1)
    model = models_in(directory, directory).load(str(directory))

    def sample(sampling: Sampling, **extra: int) -> list[list[TokenSequence]]:
        return sample_sequences(model, EXAMPLES, sampling=sampling, label="", **extra)

    together = sample(SAMPLING)
    assert all(len(of_row) == 2 for of_row in together)
    assert all(first != second for first, second in response_ids(together))
    for row, of_row in zip(EXAMPLES, together, strict=True):
        for one in of_row:
            assert (one.row_id, one.prompt_ids.tolist()) == (row.row_id, row.prompt_ids.tolist())
    swapped = response_ids(sample(replace(SAMPLING, seeds=(1, 3), max_batch_tokens=10_000)))
    assert swapped == [[second, first] for first, second in response_ids(together)]
    # A lower limit clips the samples, and leaves them unchanged otherwise.
    shorter = response_ids(sample(SAMPLING, max_new_tokens=4))
    assert shorter == [[ids[:4] for ids in of_row] for of_row in response_ids(together)]
