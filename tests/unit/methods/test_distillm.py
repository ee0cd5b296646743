"""Where DistiLLM's responses come from: probabilities, buffer, threshold, and all of it through a checkpoint."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd.data.batch import TokenSequence
from kd.data.encoding import Example
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.methods.distillm import DistiLLM, ReplayBuffer, choose_source
from kd.rollout.sampler import SampledResponses
from tests.minimal_config import load_minimal
from tests.unit.methods.contexts import make_context

NUM_STEPS = 10


def sequence(row_id: int, *, response: int = 7, length: int = 2) -> TokenSequence:
    return TokenSequence(
        row_id=row_id,
        prompt_ids=np.arange(length, dtype=np.int32),
        response_ids=np.array([response, 0], dtype=np.int32),
    )


class StepSampler:
    """Samples responses that name their step."""

    def sample(self, examples: Sequence[Example], *, seed: int, step: int, keep_hidden: bool) -> SampledResponses:
        return SampledResponses(sequences=[sequence(row.row_id, response=step) for row in examples])


def distillm(directory: Path, *, rank: int = 0, num_ranks: int = 1, **settings: Any) -> DistiLLM:
    overrides = [f"schedule.steps={NUM_STEPS}", "schedule.warmup_steps=0", "schedule.global_batch=3", "run.seed=3"]
    overrides += [f"distillm.{name}={value}" for name, value in {"buffer_rows": 6, **settings}.items()]
    config = load_minimal(directory, *overrides, method="distillm")
    world = World(rank=rank, size=num_ranks, local_rank=0, device=torch.device("cpu"))
    return DistiLLM(make_context(config, world=world, sampler=StepSampler()))


def batch(step: int) -> ExampleBatch:
    rows = [
        Example(
            row_id=index,
            prompt="",
            prompt_ids=np.arange(2 + index, dtype=np.int32),
            response_ids=np.array([9, 0], dtype=np.int32),
            references=(),
            source="",
        )
        for index in range(3)
    ]
    return ExampleBatch(step=step, examples=tuple(rows))


def responses(method: DistiLLM, step: int) -> list[TokenSequence]:
    return list(method.responses(batch(step)).sequences)


def first_tokens(method: DistiLLM, step: int) -> list[int]:
    return [int(row.response_ids[0]) for row in responses(method, step)]


@pytest.mark.parametrize("step", [1, 4, 10])
def test_shares_of_the_sources_are_as_published(step: int) -> None:
    """Fresh with φ(1 - k/K), stored with φ·k/K, the data's with 1 - φ."""
    numbers = np.linspace(0, 1, 10_000, endpoint=False)
    chosen = Counter(
        choose_source(number, threshold=0.7, step=step, num_steps=10, buffer_is_full=True) for number in numbers
    )
    shares = {source: chosen[source] / len(numbers) for source in ("student", "buffer", "data")}
    expected = {"student": 0.7 * (1 - step / 10), "buffer": 0.7 * step / 10, "data": 0.3}
    assert shares == {source: pytest.approx(share, abs=2e-4) for source, share in expected.items()}


def test_nothing_is_drawn_before_the_buffer_is_full() -> None:
    for number in np.linspace(0, 0.699, 50):
        assert choose_source(number, threshold=0.7, step=10, num_steps=10, buffer_is_full=False) == "student"
    assert choose_source(0.7, threshold=0.7, step=1, num_steps=10, buffer_is_full=False) == "data"
    assert choose_source(0.0, threshold=0.0, step=1, num_steps=10, buffer_is_full=False) == "data"


def test_the_buffer_keeps_the_newest_rows() -> None:
    buffer = ReplayBuffer(num_rows=4)
    buffer.add([sequence(row_id) for row_id in range(3)])
    assert not buffer.is_full
    buffer.add([sequence(row_id) for row_id in range(3, 6)])
    assert buffer.is_full
    assert [row["row_id"] for row in buffer.state_dict()] == [2, 3, 4, 5]


def test_every_stored_row_is_drawn_as_often_and_none_twice() -> None:
    buffer = ReplayBuffer(num_rows=8)
    buffer.add([sequence(row_id) for row_id in range(8)])
    generator = np.random.default_rng(0)
    draws = [[row.row_id for row in buffer.draw(3, generator=generator)] for _ in range(4000)]
    assert all(len(set(draw)) == 3 for draw in draws)
    counts = Counter(row_id for draw in draws for row_id in draw)
    # 1500 expected each; the standard deviation is about 31.
    assert all(abs(counts[row_id] - 1500) < 5 * 31 for row_id in range(8))


def test_the_threshold_rises_with_the_loss_since_its_last_rise(tmp_path: Path) -> None:
    method = distillm(tmp_path, initial_threshold=0.85, loss_tolerance=0.5)
    thresholds = []
    for loss in (2.0, 1.0, 2.4, 2.5, 2.9, 3.0, 3.5):
        method.follow_validation(loss)
        thresholds.append(method.threshold)
    # 2.0 is the reference, also after a better loss; 2.5 and 3.0 follow it.
    assert thresholds == pytest.approx([0.85, 0.85, 0.85, 0.95, 0.95, 1.0, 1.0])


def test_global_batches_come_from_the_chosen_source(tmp_path: Path) -> None:
    """With φ = 1, two fresh global batches fill the buffer, and the last step can only draw from it."""
    method = distillm(tmp_path, initial_threshold=1.0)
    assert first_tokens(method, 1) == [1, 1, 1]
    assert first_tokens(method, 2) == [2, 2, 2]
    assert set(first_tokens(method, NUM_STEPS)) <= {1, 2}
    assert first_tokens(distillm(tmp_path, initial_threshold=0.0), 1) == [9, 9, 9]


def test_a_draw_depends_on_seed_and_step_and_is_distributed_over_the_ranks(tmp_path: Path) -> None:
    def drawn(rank: int, num_ranks: int, step: int) -> list[int]:
        method = distillm(tmp_path, rank=rank, num_ranks=num_ranks, buffer_rows=40)
        method.buffer.add([sequence(row_id, length=1 + row_id % 5) for row_id in range(40)])
        return [row.row_id for row in method._draw(step)]

    alone = drawn(0, 1, 4)
    assert len(alone) == 3
    assert alone == drawn(0, 1, 4) != drawn(0, 1, 5)
    assert [drawn(rank, 3, 4) for rank in range(3)] == [[row_id] for row_id in alone]


def test_threshold_reference_loss_and_buffer_survive_a_checkpoint(tmp_path: Path) -> None:
    written, read = (distillm(tmp_path, initial_threshold=0.5, loss_tolerance=0.1) for _ in range(2))
    written.buffer.add([sequence(row_id, response=row_id + 1, length=1 + row_id) for row_id in range(7)])
    for loss in (1.0, 1.2):
        written.follow_validation(loss)
    file = io.BytesIO()
    torch.save(written.state_dict(), file)
    file.seek(0)
    read.load_state_dict(torch.load(file, weights_only=True))
    for method in (written, read):
        method.follow_validation(1.25)
    assert read.threshold == written.threshold == pytest.approx(0.6)
    for step in range(1, NUM_STEPS + 1):
        for ours, theirs in zip(responses(read, step), responses(written, step), strict=True):
            assert ours.row_id == theirs.row_id
            assert np.array_equal(ours.prompt_ids, theirs.prompt_ids)
            assert np.array_equal(ours.response_ids, theirs.response_ids)
            assert ours.response_ids.dtype == np.int32
