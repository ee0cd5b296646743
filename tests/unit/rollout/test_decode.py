"""The token loop against a plain loop without cache, batch or padding."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kd.data.batch import PromptBatch, SequenceBatch, TokenSequence
from kd.models.causal_lm import CausalLM
from kd.models.soft_prompt import SoftPrompt
from kd.rollout import decode as decode_module
from kd.rollout.decode import decode, row_streams
from kd.rollout.sampling import DecodingSettings, choose_tokens
from tests.tiny_models import FAMILIES, STATE_FAMILIES, save_tiny_model

VOCABULARY = 400
EOS = 0


def collate(prompts: list[list[int]]) -> PromptBatch:
    none = np.zeros(0, dtype=np.int32)
    rows = [
        TokenSequence(row_id=index, prompt_ids=np.array(ids, dtype=np.int32), response_ids=none)
        for index, ids in enumerate(prompts)
    ]
    return PromptBatch.collate(rows, pad_id=EOS, device=torch.device("cpu"))


def make_model(request: pytest.FixtureRequest, directory: Path) -> PreTrainedModel:
    save_tiny_model(directory, request.param, seed=3, padding=5, **STATE_FAMILIES.get(request.param, {}))
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return make_model(request, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=[*FAMILIES, *STATE_FAMILIES])
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return make_model(request, tmp_path_factory.mktemp(request.param))


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
        if token in settings.end_ids:
            break
    return response


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("with_prompt", [True, False])
@torch.no_grad()
def test_batch_with_cache_equals_rows_alone(any_model: PreTrainedModel, greedy: bool, with_prompt: bool) -> None:
    settings = DecodingSettings(max_new_tokens=20, vocabulary_size=VOCABULARY, end_ids=(EOS,), greedy=greedy)
    streams = row_streams(seed=1, step=2)
    width = any_model.get_input_embeddings().weight.shape[1]
    soft_prompt = SoftPrompt(torch.randn(4, width) * 0.2) if with_prompt else None
    responses = decode(
        CausalLM.of(any_model), collate(PROMPTS), settings=settings, streams=streams, soft_prompt=soft_prompt
    )
    for row, prompt in enumerate(PROMPTS):
        values = None if soft_prompt is None else soft_prompt.values
        alone = continue_alone(any_model, prompt, streams([row], 20)[0], settings, values)
        assert responses[row].token_ids == alone, f"row {row}"


@torch.no_grad()
def test_rows_that_end_leave_the_batch(any_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    view = CausalLM.of(any_model)
    free = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(-1,))
    streams = row_streams(seed=1, step=0)
    unending = [row.token_ids for row in decode(view, collate(PROMPTS), settings=free, streams=streams)]
    assert all(len(response) == 12 for response in unending), "no response may lose its last token"
    # Some token that one row, but not every row, draws early becomes the end.
    eos = unending[2][3]
    batch_sizes: list[int] = []
    original = CausalLM.hidden_states

    def spy(self: CausalLM, **arguments: Tensor) -> Tensor:
        batch_sizes.append(len(arguments["attention_mask"]))
        return original(self, **arguments)

    monkeypatch.setattr(CausalLM, "hidden_states", spy)
    settings = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(eos,))
    responses = [row.token_ids for row in decode(view, collate(PROMPTS), settings=settings, streams=streams)]
    for response, full in zip(responses, unending, strict=True):
        assert response == full[: full.index(eos) + 1 if eos in full else 12]
    expected = [len(PROMPTS)] + [sum(len(response) > step for response in responses) for step in range(1, 12)]
    assert batch_sizes == [size for size in expected if size]


@torch.no_grad()
def test_an_end_token_first_is_a_response_of_one_token(model: PreTrainedModel) -> None:
    def always_zero(row_ids: Sequence[int], num_tokens: int) -> Tensor:
        return torch.zeros(len(row_ids), num_tokens)

    # The uniform number 0 draws token 0, the end.
    settings = DecodingSettings(max_new_tokens=8, vocabulary_size=VOCABULARY, end_ids=(EOS,))
    responses = decode(CausalLM.of(model), collate(PROMPTS), settings=settings, streams=always_zero)
    assert [response.token_ids for response in responses] == [[EOS]] * 5


def test_streams_belong_to_rows_steps_and_seeds() -> None:
    streams = row_streams(seed=1, step=2)
    both, alone = streams([5, 9], 6), streams([9], 6)
    assert torch.equal(both[1:], alone)
    assert torch.equal(streams([9], 3), alone[:, :3])
    for other in (row_streams(seed=2, step=2), row_streams(seed=1, step=3)):
        assert not torch.equal(other([9], 6), alone)


@torch.no_grad()
def test_kept_hidden_states_are_those_of_a_forward_pass(any_model: PreTrainedModel) -> None:
    view = CausalLM.of(any_model)
    streams = row_streams(seed=1, step=0)
    prompts = collate(PROMPTS)
    free = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(-1,))
    eos = decode(view, prompts, settings=free, streams=streams)[2].token_ids[3]
    settings = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(eos,))
    responses = decode(view, prompts, settings=settings, streams=streams, keep_hidden=True)
    assert len({len(response.token_ids) for response in responses}) > 1, "the rows must end at different places"
    sequences = [
        TokenSequence(
            row_id=row, prompt_ids=np.array(ids, dtype=np.int32), response_ids=np.array(response, dtype=np.int32)
        )
        for row, (ids, response) in enumerate(zip(PROMPTS, [r.token_ids for r in responses], strict=True))
    ]
    batch = SequenceBatch.collate(sequences, pad_id=EOS, device=torch.device("cpu"))
    states = view.hidden_states(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    wanted = states.flatten(0, 1)[batch.response_positions]
    kept = torch.cat([response.hidden for response in responses if response.hidden is not None])
    torch.testing.assert_close(kept, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("every", [1, 8])
def test_each_end_token_ends_a_response(model: PreTrainedModel, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "notice_every", lambda *_, **__: every)
    view, streams = CausalLM.of(model), row_streams(seed=1, step=0)
    free = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(-1,))
    unending = [row.token_ids for row in decode(view, collate(PROMPTS), settings=free, streams=streams)]
    # Two rows end at one of them and two at the other, in another order than that of the ids.
    ends = (unending[0][5], unending[1][2], unending[2][7])
    settings = replace(free, end_ids=ends)
    found = [row.token_ids for row in decode(view, collate(PROMPTS), settings=settings, streams=streams)]
    expected = [[token in ends for token in row] for row in unending]
    lengths = [row.index(True) + 1 if True in row else 12 for row in expected]
    assert found == [row[:length] for row, length in zip(unending, lengths, strict=True)]
    assert len({row[-1] for row in found} & set(ends)) > 1


@torch.no_grad()
@pytest.mark.parametrize(("share", "every"), [(1, 1), (2, 1), (100, 1), (8, 2), (8, 5), (8, 8), (1, 100)])
def test_responses_do_not_depend_on_when_ended_rows_are_noticed_and_leave(
    model: PreTrainedModel, share: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    view, streams = CausalLM.of(model), row_streams(seed=1, step=0)
    free = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(-1,))
    unending = decode(view, collate(PROMPTS), settings=free, streams=streams, keep_hidden=True)
    # One row may never draw it; in the others it is drawn at several places between two looks.
    for eos in {row.token_ids[3] for row in unending} | {unending[2].token_ids[11]}:
        monkeypatch.setattr(decode_module, "COMPACT_SHARE", share)
        monkeypatch.setattr(decode_module, "notice_every", lambda *_, **__: every)
        settings = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(eos,))
        looks = []

        def note(active: bool, looks: list[bool] = looks) -> bool:
            looks.append(active)
            return active

        responses = decode(
            view, collate(PROMPTS), settings=settings, streams=streams, keep_hidden=True, any_rank_active=note
        )
        lengths = [ids.index(eos) + 1 if eos in ids else 12 for ids in (row.token_ids for row in unending)]
        for response, full, length in zip(responses, unending, lengths, strict=True):
            assert response.token_ids == full.token_ids[:length]
            torch.testing.assert_close(response.hidden, full.hidden[:length], rtol=1e-5, atol=1e-5)  # type: ignore[index]
        # The ranks agree at each look, and at the end, but not for each token.
        assert len(looks) == -(-max(lengths) // every)


def test_a_gpu_is_asked_for_ended_rows_every_eight_tokens() -> None:
    plain = DecodingSettings(max_new_tokens=12, vocabulary_size=VOCABULARY, end_ids=(EOS,))
    assert decode_module.notice_every("cuda", settings=plain) == 8
    assert decode_module.notice_every("cpu", settings=plain) == 1
    assert decode_module.notice_every("cuda", settings=replace(plain, repetition_penalty=1.2)) == 1
