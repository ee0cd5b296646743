"""The order of the training rows: seeded, the same on any number of ranks, resumable at any step."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from kd.data.encoding import Example
from kd.data.loader import BatchLoader
from kd.errors import UserError


def examples(num: int) -> list[Example]:
    """Rows with 1 to 97 tokens, in no order, half of them in the response."""
    return [
        Example(
            row_id=row_id,
            prompt="",
            prompt_ids=np.zeros(1 + row_id * 37 % 49, dtype=np.int32),
            response_ids=np.zeros(row_id * 53 % 49, dtype=np.int32),
            references=("",),
            source=f"rows.jsonl:{row_id + 1}",
        )
        for row_id in range(num)
    ]


def loader(num: int, *, global_batch: int = 8, rank: int = 0, num_ranks: int = 1, seed: int = 3) -> BatchLoader:
    return BatchLoader(examples(num), global_batch=global_batch, rank=rank, num_ranks=num_ranks, seed=seed)


def row_ids(source: BatchLoader, step: int) -> list[int]:
    return [row.row_id for row in source.batch(step).examples]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_global_batch_has_the_same_rows_on_any_number_of_ranks(num_ranks: int) -> None:
    alone = loader(30)
    ranks = [loader(30, rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for step in range(1, 12):
        shares = [row_ids(rank, step) for rank in ranks]
        assert {len(share) for share in shares} == {8 // num_ranks}
        assert Counter(sum(shares, [])) == Counter(row_ids(alone, step))


@pytest.mark.parametrize(("num", "global_batch"), [(24, 8), (30, 8), (7, 8), (3, 8), (1, 2)])
def test_every_row_occurs_once_in_each_epoch(num: int, global_batch: int) -> None:
    source = loader(num, global_batch=global_batch)
    # As many steps as rows: exactly `global_batch` epochs, so that partial batches even out.
    counts = Counter(row for step in range(1, num + 1) for row in row_ids(source, step))
    assert counts == dict.fromkeys(range(num), global_batch)


def test_no_row_repeats_before_the_epoch_ends() -> None:
    source = loader(30, global_batch=6)
    for epoch in range(3):
        rows = [row for step in range(1, 6) for row in row_ids(source, epoch * 5 + step)]
        assert sorted(rows) == list(range(30))


def test_any_step_can_be_the_first() -> None:
    straight = loader(11, rank=1, num_ranks=2)
    batches = {step: row_ids(straight, step) for step in range(1, 20)}
    jumping = loader(11, rank=1, num_ranks=2)
    assert {step: row_ids(loader(11, rank=1, num_ranks=2), step) for step in batches} == batches
    assert {step: row_ids(jumping, step) for step in (19, 1, 7, 18, 2)} == {
        step: batches[step] for step in (19, 1, 7, 18, 2)
    }
    assert straight.batch(5).step == 5


def test_order_depends_on_seed_and_epoch() -> None:
    def first_half(source: BatchLoader, epoch: int) -> set[int]:
        return {row for step in range(1, 5) for row in row_ids(source, 8 * epoch + step)}

    by_epoch = [first_half(loader(64), epoch) for epoch in range(3)]
    assert all(one != other for one, other in pairwise(by_epoch))
    assert first_half(loader(64, seed=4), 0) != by_epoch[0]
    assert first_half(loader(64), 0) != set(range(32)), "rows were not shuffled"


def test_ranks_get_similar_numbers_of_tokens() -> None:
    ranks = [loader(200, global_batch=40, rank=rank, num_ranks=4) for rank in range(4)]
    for step in range(1, 6):
        lengths = [[row.num_tokens for row in rank.batch(step).examples] for rank in ranks]
        assert all(own == sorted(own) for own in lengths)
        totals = [sum(own) for own in lengths]
        # Of sorted rows distributed in turn, any two ranks differ by at most the range of the lengths.
        everything = sum(lengths, [])
        assert max(totals) - min(totals) <= max(everything) - min(everything)


def test_epochs_and_steps() -> None:
    source = loader(30)
    assert source.epoch_at(0) == 0.0
    assert source.epoch_at(15) == 4.0
    assert source.epoch_at(1) == pytest.approx(8 / 30)
    assert source.steps_in(4.0) == 15
    assert source.steps_in(1.0) == 4
    assert source.steps_in(0.01) == 1


def test_steps_in_an_epoch_are_not_rounded_up_by_float_noise() -> None:
    # 1.1 * 100 / 10 is 11.000000000000002 in floating point.
    assert loader(100, global_batch=10).steps_in(1.1) == 11


def test_no_rows_are_refused() -> None:
    with pytest.raises(UserError, match="no training rows are left"):
        loader(0)
