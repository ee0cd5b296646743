"""Padded batches from rows of tokens, and how rows are split into batches."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kd.data.batch import (
    PromptBatch,
    SequenceBatch,
    TokenIds,
    TokenSequence,
    split_by_rows,
    split_by_slots,
    split_prompts,
)

PAD = EOS = 0
CPU = torch.device("cpu")
# A meta tensor has no values: reading one on the host raises.
META = torch.device("meta")


def ids(*values: int) -> TokenIds:
    return np.array(values, dtype=np.int32)


def row(prompt: TokenIds, response: TokenIds, *, row_id: int = 0) -> TokenSequence:
    return TokenSequence(row_id=row_id, prompt_ids=prompt, response_ids=response)


# The EOS inside the first prompt and at the end of responses has the padding's id.
ROWS = [
    row(ids(5, EOS, 7), ids(8, EOS), row_id=4),
    row(ids(6), ids(), row_id=9),
    row(ids(6, 9), ids(EOS), row_id=2),
]


def test_prompts_end_in_the_last_slot() -> None:
    batch = PromptBatch.collate(ROWS, pad_id=PAD, device=CPU)
    assert batch.input_ids.tolist() == [[5, 0, 7], [0, 0, 6], [0, 6, 9]]
    assert batch.input_ids.dtype == torch.int64
    assert batch.attention_mask.tolist() == [[True] * 3, [False, False, True], [False, True, True]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert batch.row_ids == (4, 9, 2)
    assert batch.lengths == (3, 1, 2)


def test_sequences_by_hand() -> None:
    batch = SequenceBatch.collate(ROWS, pad_id=PAD, device=CPU)
    assert batch.input_ids.tolist() == [[5, 0, 7, 8, 0], [6, 0, 0, 0, 0], [6, 9, 0, 0, 0]]
    assert batch.input_ids.dtype == torch.int64
    # Slot 2 (7, the last of the prompt) predicts 8, slot 3 (8) predicts EOS; row 2 begins at 2 * 5.
    assert batch.response_positions.tolist() == [2, 3, 11]
    assert batch.labels.tolist() == [8, EOS, EOS]
    assert batch.token_indices.tolist() == [0, 1, 0]
    assert batch.num_response_tokens == 3
    assert batch.response_lengths == (2, 0, 1)
    assert batch.row_ids == (4, 9, 2)


def test_positions_move_behind_the_soft_prompt() -> None:
    batch = SequenceBatch.collate(ROWS, pad_id=PAD, device=CPU)
    assert batch.shifted_positions(0).tolist() == [2, 3, 11]
    # With two slots before each row, a row takes 7 slots: 0 * 7 + 2 + 2, 0 * 7 + 2 + 3, 2 * 7 + 2 + 1.
    assert batch.shifted_positions(2).tolist() == [4, 5, 17]


def test_packed_sequences_by_hand() -> None:
    batch = SequenceBatch.collate(ROWS, pad_id=PAD, device=CPU, packed=True)
    assert batch.input_ids.tolist() == [[5, 0, 7, 8, 0, 6, 6, 9, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 0, 1, 2]]
    assert batch.attention_mask is None
    assert batch.packed_lengths == (5, 1, 3)
    assert batch.response_positions.tolist() == [2, 3, 7]
    # Each sequence begins with two more slots.
    assert batch.shifted_positions(2).tolist() == [4, 5, 13]
    padded = SequenceBatch.collate(ROWS, pad_id=PAD, device=CPU)
    for name in ("labels", "token_indices", "sequence_indices", "row_ids", "response_lengths"):
        found, expected = getattr(batch, name), getattr(padded, name)
        assert found.tolist() == expected.tolist() if isinstance(found, torch.Tensor) else found == expected


def test_every_position_is_followed_by_its_label() -> None:
    random = np.random.default_rng(0)
    rows = [
        row(random.integers(1, 50, random.integers(1, 9), np.int32), random.integers(1, 50, size, np.int32))
        for size in random.integers(0, 9, 20)
    ]
    batch = SequenceBatch.collate(rows, pad_id=PAD, device=CPU)
    prompted = torch.cat([torch.full((20, 3), 99), batch.input_ids], dim=1)
    assert batch.input_ids.flatten()[batch.response_positions + 1].equal(batch.labels)
    assert prompted.flatten()[batch.shifted_positions(3) + 1].equal(batch.labels)
    packed = SequenceBatch.collate(rows, pad_id=PAD, device=CPU, packed=True)
    assert packed.input_ids.flatten()[packed.response_positions + 1].equal(packed.labels)
    assert packed.labels.equal(batch.labels)
    assert batch.labels.tolist() == np.concatenate([row.response_ids for row in rows]).tolist()


def test_a_batch_without_a_response_token() -> None:
    batch = SequenceBatch.collate([row(ids(1, 2), ids()), row(ids(3), ids())], pad_id=PAD, device=CPU)
    assert batch.num_response_tokens == 0
    assert batch.response_positions.shape == batch.labels.shape == batch.shifted_positions(7).shape == (0,)
    assert batch.response_positions.dtype == batch.labels.dtype == torch.int64


def test_nothing_is_read_back_from_the_device() -> None:
    prompts = PromptBatch.collate(ROWS, pad_id=PAD, device=META)
    sequences = SequenceBatch.collate(ROWS, pad_id=PAD, device=META)
    assert prompts.position_ids.shape == (3, 3)
    assert sequences.shifted_positions(7).shape == (3,)
    assert sequences.num_response_tokens == 3


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="row 3 has an empty prompt"):
        row(ids(), ids(1), row_id=3)


def rows_of(batches: Sequence[Sequence[TokenSequence]]) -> list[list[int]]:
    return [[each.row_id for each in batch] for batch in batches]


def test_rows_are_split_longest_first_and_their_length_counts_the_response() -> None:
    rows = [row(ids(*range(1, 1 + prompt)), ids(*range(5 - prompt)), row_id=prompt) for prompt in (1, 3)]
    rows += [row(ids(*range(length)), ids(1), row_id=length) for length in (9, 6, 2)]
    assert rows_of(split_by_rows(rows, num_rows=2)) == [[9, 6], [1, 3], [2]]
    assert split_by_rows([], num_rows=2) == []


def test_slots_count_padding_and_keep_the_order_of_the_rows() -> None:
    rows = [row(ids(*range(1, length)), ids(1), row_id=length) for length in (3, 9, 4, 8, 2)]
    # Two rows of up to 9 slots take 18, three of up to 4 take 12; a longer row is a batch of its own.
    assert rows_of(split_by_slots(rows, max_slots=18)) == [[9, 8], [4, 3, 2]]
    assert rows_of(split_by_slots(rows, max_slots=17)) == [[9], [8, 4], [3, 2]]
    assert rows_of(split_by_slots(rows, max_slots=1)) == [[9], [8], [4], [3], [2]]


def test_prompts_are_split_by_the_slots_of_prompt_and_response_to_come() -> None:
    rows = [row(ids(*range(length)), ids(), row_id=length) for length in (2, 6, 5)]
    assert rows_of(split_prompts(rows, slots_per_row=4, max_batch_tokens=20)) == [[6, 5], [2]]
    assert rows_of(split_prompts(rows, slots_per_row=4, max_batch_tokens=30)) == [[6, 5, 2]]
