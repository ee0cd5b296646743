"""Which rollouts a step trains on, the values of their tokens, and the state of the store."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kd.data.batch import TokenSequence
from kd.methods.minillm_rollouts import MiniLLMSettings, Rollout, RolloutStore, score
from tests.minimal_config import load_minimal


def rollout(row_id: int, student: list[float], teacher: list[float]) -> Rollout:
    """A response whose tokens have these probabilities under both models."""
    return Rollout(
        sequence=TokenSequence(
            row_id=row_id,
            prompt_ids=np.array([1, 2], dtype=np.int32),
            response_ids=np.arange(len(student), dtype=np.int32),
        ),
        student_log_probs=torch.tensor(student).log(),
        teacher_log_probs=torch.tensor(teacher).log(),
    )


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., RolloutStore]:
    """Twelve rollouts in global batches of four, trained on twice: a collection lasts for six steps."""

    def make(seed: int = 1) -> RolloutStore:
        overrides = ["schedule.global_batch=4", "minillm.rollouts=12", "minillm.inner_epochs=2", f"run.seed={seed}"]
        return RolloutStore(load_minimal(tmp_path, *overrides, method="minillm"))

    return make


def filled(store: RolloutStore, *, step: int) -> RolloutStore:
    store.keep(
        [rollout(row_id, [0.5] * (1 + row_id % 5), [0.25] * (1 + row_id % 5)) for row_id in range(12)], step=step
    )
    return store


def rows_of(store: RolloutStore, steps: range) -> list[list[int]]:
    return [[rollout.sequence.row_id for rollout in store.batch(step)] for step in steps]


def test_each_inner_epoch_trains_on_every_rollout_once_in_its_own_global_batches(
    make_store: Callable[..., RolloutStore],
) -> None:
    store = filled(make_store(), step=1)
    rows = rows_of(store, range(1, 7))
    epochs = rows[:3], rows[3:]
    for epoch in epochs:
        assert sorted(row for batch in epoch for row in batch) == list(range(12))
    assert [set(batch) for batch in epochs[0]] != [set(batch) for batch in epochs[1]]
    assert rows_of(filled(make_store(seed=2), step=1), range(1, 7)) != rows
    # The next collection is split differently.
    assert rows_of(filled(store, step=7), range(7, 13)) != rows


def test_rollouts_are_lacking_where_a_collection_begins(make_store: Callable[..., RolloutStore]) -> None:
    store = make_store()
    lacking = []
    for step in range(1, 15):
        if store.lacks(step):
            lacking.append(step)
            filled(store, step=step)
    assert lacking == [1, 7, 13]


def test_the_order_of_the_ranks_rollouts_does_not_matter(make_store: Callable[..., RolloutStore]) -> None:
    store, other = filled(make_store(), step=1), make_store()
    other.keep(store.batch(3) + store.batch(1) + store.batch(2), step=1)
    assert rows_of(other, range(1, 7)) == rows_of(store, range(1, 7))


def test_a_store_resumes_from_the_state_of_another(make_store: Callable[..., RolloutStore], tmp_path: Path) -> None:
    store = filled(make_store(), step=7)
    torch.save(store.state_dict(), tmp_path / "state.pt")
    restored = make_store()
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert not restored.lacks(12) and restored.lacks(13)
    assert rows_of(restored, range(7, 13)) == rows_of(store, range(7, 13))
    for ours, theirs in zip(restored.batch(9), store.batch(9), strict=True):
        for name in ("prompt_ids", "response_ids"):
            ids = getattr(ours.sequence, name)
            assert ids.dtype == np.int32 and ids.tolist() == getattr(theirs.sequence, name).tolist()
        assert torch.equal(ours.student_log_probs, theirs.student_log_probs)
        assert torch.equal(ours.teacher_log_probs, theirs.teacher_log_probs)


def test_returns_are_whitened_over_all_tokens_of_a_global_batch() -> None:
    """Rewards ln 2, ln 2 and ln 2, -ln 2: returns ln 2, 0 and -ln 2, 0, whose mean is 0 and variance (ln 2)² / 2."""
    settings = MiniLLMSettings(reward_scale=1.0, discount=1.0)
    rows = [rollout(0, [0.25, 0.25], [0.5, 0.5]), rollout(1, [0.25, 0.5], [0.5, 0.25])]
    first, second = score(rows, settings=settings)
    assert first.advantages.tolist() == pytest.approx([2**0.5, 0])
    assert second.advantages.tolist() == pytest.approx([-(2**0.5), 0])
    assert second.rewards.exp().tolist() == pytest.approx([2, 0.5])
    assert second.importance_weights.tolist() == pytest.approx([0.25 / 0.3, 0.5 / 0.45])
    assert second.sampled_log_probs.exp().tolist() == pytest.approx([0.25, 0.5])
    (alone,) = score(rows[:1], settings=MiniLLMSettings(reward_scale=1.0, discount=1.0, whitened=False))
    assert alone.advantages.exp().tolist() == pytest.approx([2, 1])
