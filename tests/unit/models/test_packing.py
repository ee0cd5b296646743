"""Packed sequences have the hidden states of padded ones."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from kd.data.batch import SequenceBatch, TokenSequence
from kd.models.causal_lm import CausalLM
from kd.models.soft_prompt import SoftPrompt, response_states
from tests.tiny_models import FAMILIES, tiny_config

WIDTH = 32


def rows() -> list[TokenSequence]:
    generator = np.random.default_rng(0)
    return [
        TokenSequence(
            row_id=row,
            prompt_ids=generator.integers(1, 299, prompt).astype(np.int32),
            response_ids=generator.integers(1, 299, response).astype(np.int32),
        )
        for row, (prompt, response) in enumerate([(5, 9), (1, 7), (8, 0), (2, 1)])
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])
def test_packed_equals_padded(family: str, attention: str) -> None:
    torch.manual_seed(0)
    config = tiny_config(family, vocab_size=300, width=WIDTH, layers=2, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    view, soft_prompt = CausalLM.of(model), SoftPrompt(torch.randn(3, WIDTH))
    padded, packed = (
        SequenceBatch.collate(rows(), pad_id=0, device=torch.device("cpu"), packed=packed) for packed in (False, True)
    )
    for prompt in (None, soft_prompt):
        states, others = (response_states(view, batch, soft_prompt=prompt) for batch in (padded, packed))
        torch.testing.assert_close(others, states)
        if prompt is None:
            continue
        gradients = [torch.autograd.grad(found.square().sum(), prompt.values)[0] for found in (states, others)]
        torch.testing.assert_close(gradients[1], gradients[0])
