"""The sequences of a global batch: which rows get a sampled response, and where the others come from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd.data.encoding import Example
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.methods.base import uniform
from kd.methods.gkd import GKD
from kd.rollout.decode import row_streams
from kd.rollout.sampler import SampledResponses
from tests.minimal_config import load_minimal
from tests.unit.methods.contexts import make_context

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
SAMPLED, OWN = 7, 9


class FakeSampler:
    """Samples the same token for every row, and notes the rows."""

    def __init__(self) -> None:
        self.row_ids: list[int] = []

    def sample(self, examples: Sequence[Example], *, seed: int, step: int, keep_hidden: bool) -> SampledResponses:
        self.row_ids = [row.row_id for row in examples]
        sequences = [row.with_response(np.array([SAMPLED], dtype=np.int32)) for row in examples]
        hidden = {row.row_id: torch.zeros(1, 3) for row in examples} if keep_hidden else None
        return SampledResponses(sequences=sequences, hidden=hidden)


def gkd(directory: Path, *, seed: int = 1, sampler: Any = None) -> GKD:
    config = load_minimal(directory, f"run.seed={seed}", method="gkd")
    return GKD(make_context(config, world=ALONE, sampler=sampler))


def batch(*, step: int = 1, rows: int = 64) -> ExampleBatch:
    prompt, response = np.array([1], dtype=np.int32), np.array([OWN, 0], dtype=np.int32)
    examples = [
        Example(row_id=row, prompt="", prompt_ids=prompt, response_ids=response, references=(), source=f"x:{row}")
        for row in range(rows)
    ]
    return ExampleBatch(step=step, examples=tuple(examples))


@pytest.fixture
def sampled_rows(tmp_path: Path) -> Callable[..., list[int]]:
    """sampled_rows(fraction): the rows of a global batch that get sampled responses."""

    def sample(fraction: float, *, seed: int = 1, step: int = 1, rows: int = 64) -> list[int]:
        sampler = FakeSampler()
        gkd(tmp_path, seed=seed, sampler=sampler).rollout(batch(step=step, rows=rows), student_fraction=fraction)
        return sampler.row_ids

    return sample


def test_a_fraction_of_the_rows_gets_sampled_responses(sampled_rows: Callable[..., list[int]]) -> None:
    # 1200 expected; the standard deviation is 29.
    assert abs(len(sampled_rows(0.3, rows=4000)) - 1200) < 5 * 29
    assert sampled_rows(1.0) == list(range(64))


def test_the_choice_depends_on_seed_and_step(sampled_rows: Callable[..., list[int]]) -> None:
    first = sampled_rows(0.5)
    assert first == sampled_rows(0.5)
    assert first != sampled_rows(0.5, step=2)
    assert first != sampled_rows(0.5, seed=2)


def test_the_choice_is_independent_of_the_response() -> None:
    """Its random stream is another than that of the response's first token."""
    numbers = np.array([uniform(1, 5, row, stream=1) for row in range(2000)])
    first = row_streams(seed=1, step=5)(range(2000), 1).numpy()[:, 0]
    assert abs(np.corrcoef(numbers, first)[0, 1]) < 5 / np.sqrt(2000)


def test_other_rows_keep_their_own_responses(tmp_path: Path) -> None:
    sampler = FakeSampler()
    rollouts = gkd(tmp_path, sampler=sampler).rollout(batch(), student_fraction=0.5, keep_hidden=True)
    assert 0 < len(sampler.row_ids) < 64
    is_sampled = [row.response_ids.tolist() == [SAMPLED] for row in rollouts.sequences]
    assert is_sampled == [row in sampler.row_ids for row in range(64)]
    assert rollouts.student_hidden is not None and list(rollouts.student_hidden) == sampler.row_ids


def test_a_rank_without_such_rows_samples_along(tmp_path: Path) -> None:
    """Sampling is collective: its first row's response is discarded."""
    sampler = FakeSampler()
    rollouts = gkd(tmp_path, sampler=sampler).rollout(batch(), student_fraction=0.0)
    assert sampler.row_ids == [0]
    assert {int(row.response_ids[0]) for row in rollouts.sequences} == {OWN}


def test_without_a_sampler_rollouts_are_the_rows_own_responses(tmp_path: Path) -> None:
    rollouts = gkd(tmp_path).rollout(batch(rows=4))
    assert rollouts.labels.tolist() == [OWN, 0] * 4
