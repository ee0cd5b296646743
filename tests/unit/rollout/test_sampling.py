"""The choice of a token: its probabilities, and the processors against Hugging Face's."""

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kd.rollout.sampling import BLOCK, DecodingSettings, choose_tokens

NUM_DRAWS = 20_000


def settings_with(**values: float) -> DecodingSettings:
    return DecodingSettings(max_new_tokens=1, vocabulary_size=50, end_ids=(0,), **values)  # type: ignore[arg-type]


def frequencies(logits: Tensor, settings: DecodingSettings, *, history: list[int] | None = None) -> Tensor:
    """Share of each token over evenly spaced uniform numbers, which is its probability to 1e-4."""
    uniforms = (torch.arange(NUM_DRAWS, dtype=torch.float64) + 0.5) / NUM_DRAWS
    rows = None if history is None else [history] * NUM_DRAWS
    tokens = choose_tokens(logits.expand(NUM_DRAWS, -1), uniforms, settings=settings, history=rows)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / NUM_DRAWS


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_come_with_their_probabilities(temperature: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    wanted = (logits / temperature).softmax(-1)
    assert torch.allclose(frequencies(logits, settings_with(temperature=temperature)), wanted, atol=1e-4)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_a_draw_equals_one_running_sum_over_the_whole_vocabulary(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(500, size, generator=generator) * 3
    uniforms = torch.rand(500, generator=generator, dtype=torch.float64)
    sums = logits.double().softmax(-1).cumsum(-1)
    wanted = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True).squeeze(1)
    assert torch.equal(choose_tokens(logits, uniforms, settings=settings_with()), wanted)


PROCESSORS = [
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.7},
    {"top_p": 1e-6},
    {"min_p": 0.2},
    {"top_k": 9, "top_p": 0.6},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.6},
    {"no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "temperature": 1.4, "top_p": 0.8},
]
HISTORY = [7, 3, 9, 3, 11, 7, 3]


@pytest.mark.parametrize("values", PROCESSORS, ids=str)
def test_processors_do_what_transformers_does(values: dict[str, float]) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 2
    made = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    processors = LogitsProcessorList([make(values[name]) for name, make in made.items() if name in values])
    scores = processors(torch.tensor([HISTORY]), logits[None])
    wanted = scores[0].softmax(-1)
    assert not torch.allclose(wanted, logits.softmax(-1), atol=1e-3), "these processors must change something"
    assert torch.allclose(frequencies(logits, settings_with(**values), history=HISTORY), wanted, atol=1.1e-4)
    greedy = choose_tokens(
        logits[None], torch.zeros(1), settings=settings_with(greedy=True, **values), history=[HISTORY]
    )
    assert greedy.item() == scores.argmax().item()


def test_each_row_has_its_own_history() -> None:
    logits = torch.zeros(2, 50)
    logits[:, [4, 5]] = torch.tensor([2.0, 1.9])
    settings = settings_with(greedy=True, repetition_penalty=2.0)
    assert choose_tokens(logits, torch.zeros(2), settings=settings, history=[[4], [8]]).tolist() == [5, 4]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("size", [10, 3 * BLOCK])
@pytest.mark.parametrize("token", [0, 4, 9])
def test_an_extreme_number_never_draws_an_impossible_token(uniform: float, size: int, token: int) -> None:
    logits = torch.full((1, size), -torch.inf)
    logits[0, token] = 1.0
    uniforms = torch.tensor([uniform], dtype=torch.float64)
    assert choose_tokens(logits, uniforms, settings=settings_with()).tolist() == [token]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("size", [10, BLOCK, 3 * BLOCK])
def test_numbers_that_are_not_finite_draw_some_token_of_the_vocabulary(broken: float, size: int) -> None:
    """An index beyond it would end in an error, on a GPU of the whole process, instead of the line about the loss."""
    logits = torch.zeros(2, size)
    logits[1, 3] = broken
    for values in ({}, {"top_p": 0.9, "top_k": 5}):
        drawn = choose_tokens(logits, torch.full((2,), 0.99), settings=settings_with(**values))
        assert drawn.min() >= 0 and drawn.max() < size
