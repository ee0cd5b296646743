"""The token loop against a plain loop without cache, batch or padding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from kd.data.batch import PromptBatch, TokenSequence
from kd.engines.causal_lm import CausalLM
from kd.engines.soft_prompt import SoftPrompt
from kd.generation.decoding import DecodingSettings, choose_tokens, decode, row_streams
from tests.tiny_models import FAMILIES, save_tiny_model

VOCABULARY = 400
EOS = 0


def collate(prompts: list[list[int]]) -> PromptBatch:
    none = np.zeros(0, dtype=np.int32)
    rows = [
        TokenSequence(row_id=index, prompt_ids=np.array(ids, dtype=np.int32), response_ids=none)
        for index, ids in enumerate(prompts)
    ]
    return PromptBatch.collate(rows, pad_id=EOS, device=torch.device("cpu"))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    directory = save_tiny_model(tmp_path_factory.mktemp(request.param), request.param, seed=3, padding=5)
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


PROMPTS = [np.random.default_rng(row).integers(1, VOCABULARY, 2 + 3 * row).tolist() for row in range(5)]


def continue_alone(
    model: PreTrainedModel, prompt: list[int], uniforms: Tensor, settings: DecodingSettings, values: Tensor | None
) -> list[int]:
    """One row, recomputed from the start for every token."""
    response: list[int] = []
    while len(response) < settings.max_new_tokens:
        embeds = model.get_input_embeddings()(torch.tensor([prompt + response]))
        if values is not None:
            embeds = torch.cat([values[None], embeds], dim=1)
        logits = model(inputs_embeds=embeds).logits[:, -1, :VOCABULARY]
        token = int(choose_tokens(logits, uniforms[len(response) : len(response) + 1], settings=settings))
        response.append(token)
        if token == settings.eos_id:
            break
    return response


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("with_prompt", [True, False])
@torch.no_grad()
def test_batch_with_cache_equals_rows_alone(model: PreTrainedModel, greedy: bool, with_prompt: bool) -> None:
    settings = DecodingSettings(max_new_tokens=20, vocabulary_size=VOCABULARY, eos_id=EOS, greedy=greedy)
    streams = row_streams(seed=1, step=2)
    width = model.get_input_embeddings().weight.shape[1]
    soft_prompt = SoftPrompt(torch.randn(4, width) * 0.2) if with_prompt else None
    responses = decode(
        CausalLM.of(model), collate(PROMPTS), settings=settings, streams=streams, soft_prompt=soft_prompt
    )
    for row, prompt in enumerate(PROMPTS):
        values = None if soft_prompt is None else soft_prompt.values
        alone = continue_alone(model, prompt, streams([row], 20)[0], settings, values)
        assert responses[row] == alone, f"row {row}"


@torch.no_grad()
def test_rows_that_end_leave_the_batch(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    view = CausalLM.of(model)
    free = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, eos_id=-1)
    streams = row_streams(seed=1, step=0)
    unending = decode(view, collate(PROMPTS), settings=free, streams=streams)
    assert all(len(response) == 12 for response in unending), "no response may lose its last token"
    # Some token that one row, but not every row, draws early becomes the end.
    eos = unending[2][3]
    batch_sizes: list[int] = []
    original = CausalLM.hidden_states

    def spy(self: CausalLM, **arguments: Tensor) -> Tensor:
        batch_sizes.append(len(arguments["attention_mask"]))
        return original(self, **arguments)

    monkeypatch.setattr(CausalLM, "hidden_states", spy)
    settings = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, eos_id=eos)
    responses = decode(view, collate(PROMPTS), settings=settings, streams=streams)
    for response, whole in zip(responses, unending, strict=True):
        end = whole.index(eos) + 1 if eos in whole else 12
        assert response == whole[:end]
    expected = [len(PROMPTS)] + [sum(len(response) > step for response in responses) for step in range(1, 12)]
    assert batch_sizes == [size for size in expected if size]


@torch.no_grad()
def test_an_end_token_first_is_a_response_of_one_token(model: PreTrainedModel) -> None:
    def always_zero(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        return torch.zeros(len(row_ids), num_tokens)

    # The uniform number 0 draws token 0, the end.
    settings = DecodingSettings(max_new_tokens=8, vocabulary_size=VOCABULARY, eos_id=EOS)
    assert decode(CausalLM.of(model), collate(PROMPTS), settings=settings, streams=always_zero) == [[EOS]] * 5


def test_streams_belong_to_rows_steps_and_seeds() -> None:
    streams = row_streams(seed=1, step=2)
    both, alone = streams([5, 9], 6), streams([9], 6)
    assert torch.equal(both[1:], alone)
    assert torch.equal(streams([9], 3), alone[:, :3])
    for other in (row_streams(seed=2, step=2), row_streams(seed=1, step=3)):
        assert not torch.equal(other([9], 6), alone)


def settings_with(**values: float) -> DecodingSettings:
    return DecodingSettings(max_new_tokens=1, vocabulary_size=50, eos_id=0, **values)  # type: ignore[arg-type]


def frequencies(logits: Tensor, settings: DecodingSettings) -> Tensor:
    """Share of each token over evenly spaced uniform numbers, which is its probability to 1e-4."""
    uniforms = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    tokens = choose_tokens(logits.expand(20000, -1), uniforms, settings=settings)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / 20000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_tokens_come_with_their_probabilities(temperature: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    wanted = (logits / temperature).softmax(-1)
    assert torch.allclose(frequencies(logits, settings_with(temperature=temperature)), wanted, atol=1e-4)


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.7), (9, 0.6), (0, 1e-6), (1, 1.0)])
def test_top_k_and_top_p_keep_what_transformers_keeps(top_k: int, top_p: float) -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 2
    scores = logits[None]
    if top_k:
        scores = TopKLogitsWarper(top_k)(torch.empty(0), scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(torch.empty(0), scores)
    wanted = scores[0].softmax(-1)
    assert torch.allclose(frequencies(logits, settings_with(top_k=top_k, top_p=top_p)), wanted, atol=1e-4)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_an_extreme_number_never_draws_an_impossible_token(uniform: float) -> None:
    logits = torch.full((1, 10), -torch.inf)
    logits[0, 4] = 1.0
    assert choose_tokens(logits, torch.tensor([uniform], dtype=torch.float64), settings=settings_with()).tolist() == [4]


def test_the_prompt_stands_next_to_the_text(tmp_path: Path) -> None:
    soft_prompt = SoftPrompt(torch.tensor([[10.0], [11.0]]))
    embeds = torch.tensor([[[0.0], [0.0], [1.0]], [[1.0], [2.0], [3.0]]])
    left = torch.tensor([[False, False, True], [True, True, True]])
    out, mask = soft_prompt(embeds, left)
    assert out[..., 0].tolist() == [[0, 0, 10, 11, 1], [10, 11, 1, 2, 3]]
    assert mask.tolist() == [[False, False, True, True, True], [True] * 5]
    right = torch.tensor([[True, False, False], [True, True, True]])
    out, mask = soft_prompt(embeds, right)
    assert out[..., 0].tolist() == [[10, 11, 0, 0, 1], [10, 11, 1, 2, 3]]
    assert mask.tolist() == [[True, True, True, False, False], [True] * 5]
