"""A global batch: micro-batches that divide its tokens, the count over all ranks, and inference batches."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kd.data.batch import TokenSequence
from kd.data.global_batch import EmptyBatchError, GlobalBatch, GlobalBatcher
from kd.distributed import World


class WithAnotherRank(World):
    """The first of two ranks; the other one has 5 response tokens, 3 micro-batches and 4 inference batches."""

    def gather_counts(self, local: Sequence[int]) -> list[list[int]]:
        return [list(local), [5, 3, 4]]


def world(size: int = 1) -> World:
    kind = World if size == 1 else WithAnotherRank
    return kind(rank=0, size=size, local_rank=0, device=torch.device("cpu"))


def sequence(row_id: int, *, prompt: int, response: int) -> TokenSequence:
    """Token ids that tell the row."""
    return TokenSequence(
        row_id=row_id,
        prompt_ids=np.full(prompt, 10 * row_id, dtype=np.int32),
        response_ids=10 * row_id + 1 + np.arange(response, dtype=np.int32),
    )


# By length: 3, 1, 4, 2.
SEQUENCES = [
    sequence(1, prompt=3, response=3),
    sequence(2, prompt=1, response=2),
    sequence(3, prompt=2, response=6),
    sequence(4, prompt=4, response=0),
]
EMPTY = [sequence(5, prompt=2, response=0)]


def make(sequences: Sequence[TokenSequence], *, slots: int | None = None, size: int = 1) -> GlobalBatch:
    return GlobalBatcher(micro_batch=2, inference_batch_tokens=slots, pad_id=0, world=world(size))(sequences)


def test_micro_batches_divide_the_tokens_in_order() -> None:
    batch = make(SEQUENCES)
    assert batch.response_lengths == [(3, 6), (1, 3), (4, 0), (2, 2)]
    assert batch.labels.tolist() == [31, 32, 33, 34, 35, 36, 11, 12, 13, 21, 22]
    assert [micro.tokens for micro in batch.micro_batches] == [slice(0, 9), slice(9, 11)]
    for micro in batch.micro_batches:
        assert torch.equal(batch.labels[micro.tokens], micro.labels)
    assert batch.micro_batches[0].token_indices.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_the_count_and_the_loss_scale_are_those_of_all_ranks() -> None:
    for size, num_tokens in ((1, 11), (2, 16)):
        batch = make(SEQUENCES, size=size)
        assert batch.num_tokens == num_tokens
        # DeepSpeed averages the gradients over the ranks.
        assert {micro.loss_scale for micro in batch.micro_batches} == {size / num_tokens}
        assert {micro.num_tokens for micro in batch.micro_batches} == {num_tokens}


@pytest.mark.parametrize("slots", [1, 12, 16, 1000, None])
def test_inference_batches_have_the_tokens_in_the_order_of_the_micro_batches(slots: int | None) -> None:
    batch = make(SEQUENCES, slots=slots)
    assert len(batch.inference_batches) == batch.num_own_inference_batches
    assert torch.cat([part.labels for part in batch.inference_batches]).equal(batch.labels)
    sizes = [part.input_ids.numel() for part in batch.inference_batches]
    assert len(sizes) == {1: 4, 12: 3, 16: 2, 1000: 1, None: 2}[slots]


def test_a_rank_with_fewer_inference_batches_repeats_its_last_one() -> None:
    batch = make(SEQUENCES, slots=16, size=2)
    assert (len(batch.inference_batches), batch.num_own_inference_batches) == (4, 2)
    assert batch.inference_batches[1] is batch.inference_batches[2] is batch.inference_batches[3]


def test_a_rank_with_fewer_micro_batches_adds_some_without_a_response_token() -> None:
    batch = make(SEQUENCES, size=2)
    assert batch.response_lengths == [(3, 6), (1, 3), (4, 0), (2, 2), (1, 0)]
    assert [micro.tokens for micro in batch.micro_batches] == [slice(0, 9), slice(9, 11), slice(11, 11)]
    assert len(batch.labels) == 11
    # Inference needs no such batch.
    assert len(batch.inference_batches) == 4 and batch.num_own_inference_batches == 2


def test_only_a_batch_without_a_token_on_any_rank_is_empty() -> None:
    with pytest.raises(EmptyBatchError):
        make(EMPTY)
    batch = make(EMPTY, size=2)
    assert (batch.num_tokens, batch.labels.tolist(), batch.micro_batches[0].tokens) == (5, [], slice(0, 0))


def test_micro_batches_of_tokens_keep_the_order_and_the_mean() -> None:
    by_rows = make(SEQUENCES)
    for packs, sizes in ((False, [8, 12, 3]), (True, [8, 10, 3])):
        batcher = GlobalBatcher(
            micro_batch=2, micro_tokens=12, packs=packs, inference_batch_tokens=None, pad_id=0, world=world()
        )
        batch = batcher(SEQUENCES)
        # Of 8, 6, 4 and 3 tokens; padded, the second and the third take 12 slots.
        assert [micro.batch.input_ids.numel() for micro in batch.micro_batches] == sizes
        assert batch.labels.equal(by_rows.labels)
        assert batch.response_lengths == by_rows.response_lengths
        assert {micro.loss_scale for micro in batch.micro_batches} == {1 / 11}
        assert torch.cat([part.labels for part in batch.inference_batches]).equal(batch.labels)
