"""Teacher-mixed decoding against a plain loop without cache, batch or padding."""

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from kd.models.causal_lm import CausalLM
from kd.rollout.decode import Mixture, decode, row_streams
from kd.rollout.sampling import DecodingSettings, choose_tokens, mixture_log_probs
from tests.tiny_models import FAMILIES, save_tiny_model
from tests.unit.rollout.test_decode import PROMPTS, VOCABULARY, collate

MAX_TOKENS = 12
STREAMS = row_streams(seed=1, step=2)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedModel]:
    """Student and teacher of different depth, width and padded vocabulary."""
    directory = tmp_path_factory.mktemp(request.param)
    save_tiny_model(directory / "student", request.param, seed=3, padding=5)
    save_tiny_model(directory / "teacher", request.param, seed=4, width=48, layers=3, padding=9)
    return {
        name: AutoModelForCausalLM.from_pretrained(directory / name, dtype=torch.float32).eval()
        for name in ("student", "teacher")
    }


def continue_alone(
    pair: dict[str, PreTrainedModel], prompt: list[int], uniforms: Tensor, *, teacher_share: float, eos: int
) -> list[int]:
    """One row, both models run from the start for every token."""
    settings = DecodingSettings(max_new_tokens=MAX_TOKENS, vocabulary_size=VOCABULARY, end_ids=(eos,))
    response: list[int] = []
    while len(response) < MAX_TOKENS and response[-1:] != [eos]:
        ids = torch.tensor([prompt + response])
        student, teacher = (
            pair[name](ids).logits[:, -1, :VOCABULARY].double().softmax(-1) for name in ("student", "teacher")
        )
        mixture = (teacher_share * teacher + (1 - teacher_share) * student).log()
        uniform = uniforms[len(response) : len(response) + 1]
        response.append(int(choose_tokens(mixture, uniform, settings=settings)))
    return response


@torch.no_grad()
@pytest.mark.parametrize("teacher_share", [0.2, 0.9])
def test_a_batch_with_two_caches_equals_rows_alone(pair: dict[str, PreTrainedModel], teacher_share: float) -> None:
    uniforms = STREAMS(range(len(PROMPTS)), MAX_TOKENS)
    unending = [
        continue_alone(pair, prompt, row, teacher_share=teacher_share, eos=-1)
        for prompt, row in zip(PROMPTS, uniforms, strict=True)
    ]
    # Some token that one row draws early becomes the end, so that rows leave both caches at different times.
    eos = unending[2][3]
    settings = DecodingSettings(max_new_tokens=MAX_TOKENS, vocabulary_size=VOCABULARY, end_ids=(eos,))
    student, teacher = CausalLM.of(pair["student"]), CausalLM.of(pair["teacher"])
    mixture = Mixture(teacher=teacher, teacher_share=teacher_share)
    responses = decode(student, collate(PROMPTS), settings=settings, streams=STREAMS, mixture=mixture)
    for response, full in zip(responses, unending, strict=True):
        assert response.token_ids == full[: full.index(eos) + 1 if eos in full else MAX_TOKENS]
    plain = decode(student, collate(PROMPTS), settings=settings, streams=STREAMS)
    assert [row.token_ids for row in plain] != [row.token_ids for row in responses], (
        "the teacher must change some token"
    )


def test_the_mixture_is_of_probabilities() -> None:
    generator = np.random.default_rng(0)
    student, teacher = (torch.from_numpy(5 * generator.normal(size=(4, 7))) for _ in range(2))
    teacher[0, 3] = -torch.inf
    student[1, 2] = 200.0
    mixed = mixture_log_probs(student, teacher, teacher_share=0.2).exp().double()
    torch.testing.assert_close(mixed, 0.2 * teacher.softmax(-1) + 0.8 * student.softmax(-1), rtol=1e-5, atol=1e-7)
