"""Outputs: log-probabilities of tokens, logits over the shared vocabulary, the part of a micro-batch."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from kd.losses.outputs import chunk_rows
from tests.unit.losses.problems import LABELS, NUM_ROWS, VOCABULARY, make_outputs


@pytest.mark.parametrize("chunk_size", [1, 3, NUM_ROWS, 1000, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_token_log_probs_equal_log_softmax_over_the_shared_vocabulary(
    chunk_size: int | None, dtype: torch.dtype
) -> None:
    outputs = make_outputs(seed=0, padding=4, bias=True, dtype=dtype)
    values = outputs.token_log_probs(LABELS, chunk_size=chunk_size)
    logits = outputs.hidden.double() @ outputs.head.weight.double().T + outputs.head.bias.double()
    expected = logits[:, :VOCABULARY].log_softmax(-1)[torch.arange(NUM_ROWS), LABELS]
    assert values.dtype == dtype and not values.requires_grad
    torch.testing.assert_close(values.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    if dtype == torch.float64:
        torch.testing.assert_close(values, expected.detach(), rtol=1e-12, atol=1e-14)


def test_bfloat16_log_probs_are_float32() -> None:
    assert make_outputs(seed=0, dtype=torch.bfloat16).token_log_probs(LABELS).dtype == torch.float32


def test_head_values_end_with_the_shared_vocabulary() -> None:
    outputs = make_outputs(seed=0, padding=4)
    values = outputs.head_values(slice(2, 5))
    assert values.shape == (3, VOCABULARY) and not values.requires_grad
    torch.testing.assert_close(values, outputs.hidden[2:5] @ outputs.head.weight[:VOCABULARY].T)


def test_a_micro_batch_selects_its_positions() -> None:
    outputs = replace(make_outputs(seed=0), token_indices=None)
    micro = SimpleNamespace(tokens=slice(3, 7), token_indices=torch.arange(4))
    part = outputs[micro]
    assert torch.equal(part.hidden, outputs.hidden[3:7]) and part.head is outputs.head
    assert len(part) == 4 and part.token_indices is micro.token_indices


def test_chunk_rows_fill_the_budget() -> None:
    assert chunk_rows(50_000, byte_budget=4 * 50_000 * 10) == 10
    assert chunk_rows(50_000, byte_budget=4 * 50_000 * 10 - 1) == 9
    assert chunk_rows(50_000, byte_budget=1) == 1
    assert chunk_rows(2**18) == 128
