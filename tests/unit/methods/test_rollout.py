"""The sequences of a global batch: which rows get a sampled response, and where the others come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
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


def batch(*, step: int = 1, rows: int = 4) -> ExampleBatch:
    response = np.array([OWN, 0], dtype=np.int32)
    examples = [
        Example(
            row_id=row, prompt="", prompt_ids=np.array([1]), response_ids=response, references=(), source=f"x:{row}"
        )
        for row in range(rows)
    ]
    return ExampleBatch(step=step, examples=tuple(examples))


def chosen(method: GKD, *, step: int = 1, fraction: float, rows: int = 64) -> list[bool]:
    return [method.is_student_row(row, batch(step=step), fraction) for row in range(rows)]


def test_a_fraction_of_the_rows_gets_sampled_responses(tmp_path: Path) -> None:
    method = gkd(tmp_path)
    count = sum(sum(chosen(method, step=step, fraction=0.3, rows=100)) for step in range(40))
    # 1200 expected; the standard deviation is 29.
    assert abs(count - 1200) < 5 * 29
    assert all(chosen(method, fraction=1.0)) and not any(chosen(method, fraction=0.0))


def test_the_choice_depends_on_seed_and_step(tmp_path: Path) -> None:
    first = chosen(gkd(tmp_path), fraction=0.5)
    assert first == chosen(gkd(tmp_path), fraction=0.5)
    assert first != chosen(gkd(tmp_path), step=2, fraction=0.5)
    assert first != chosen(gkd(tmp_path, seed=2), fraction=0.5)


def test_the_choice_is_independent_of_the_response() -> None:
    """Its random stream is another than that of the response's first token."""
    numbers = np.array([uniform(1, 5, row, stream=1) for row in range(2000)])
    first = row_streams(seed=1, step=5)(range(2000), 1).numpy()[:, 0]
    assert abs(np.corrcoef(numbers, first)[0, 1]) < 5 / np.sqrt(2000)


def test_other_rows_keep_their_own_responses(tmp_path: Path) -> None:
    sampler = FakeSampler()
    method = gkd(tmp_path, sampler=sampler)
    students = [row for row, is_students in enumerate(chosen(method, fraction=0.5, rows=8)) if is_students]
    assert 0 < len(students) < 8
    rollouts = method.rollout(batch(rows=8), student_fraction=0.5, keep_hidden=True)
    assert sampler.row_ids == students
    assert [int(row.response_ids[0]) == SAMPLED for row in rollouts.sequences] == [row in students for row in range(8)]
    assert rollouts.student_hidden is not None and list(rollouts.student_hidden) == students


def test_a_rank_without_such_rows_samples_along(tmp_path: Path) -> None:
    """Sampling is collective: its first row's response is discarded."""
    sampler = FakeSampler()
    rollouts = gkd(tmp_path, sampler=sampler).rollout(batch(), student_fraction=0.0)
    assert sampler.row_ids == [0]
    assert {int(row.response_ids[0]) for row in rollouts.sequences} == {OWN}


def test_without_a_sampler_rollouts_are_the_rows_own_responses(tmp_path: Path) -> None:
    rollouts = gkd(tmp_path).rollout(batch())
    assert rollouts.labels.tolist() == [OWN, 0] * 4
