"""What the ranks do in the tests of sampling that goes wrong."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd.distributed import World, start_world
from kd.errors import UserError
from kd.models.causal_lm import CausalLM
from kd.rollout.inference_copy import InferenceCopy
from kd.zero.engine import start_deepspeed
from tests.distributed.generation_jobs import Prompts, Sampling, responses
from tests.distributed.harness import full_weights

NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    " allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
)


@contextmanager
def failing_where(fails: Callable[[list[int]], bool], *, error: BaseException) -> Iterator[list[int]]:
    """Forward passes raise `error` where `error` is due by the numbers of rows of all passes so far; yields these."""
    num_rows: list[int] = []
    original = CausalLM.hidden_states

    def forward(self: CausalLM, **arguments: Any) -> Tensor:
        num_rows.append(len(arguments["attention_mask"]))
        if fails(num_rows):
            raise error
        return original(self, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "hidden_states", forward)
        yield num_rows


def failing_above(most_rows: int, *, error: BaseException) -> AbstractContextManager[list[int]]:
    """Forward passes with more rows raise `error`; gives the numbers of rows of all passes."""
    return failing_where(lambda num_rows: num_rows[-1] > most_rows, error=error)


@contextmanager
def interrupted_at(number: int) -> Iterator[None]:
    """The body ends with an interruption in one of its forward passes, counted from 1."""
    interruption = failing_where(lambda num_rows: len(num_rows) == number, error=KeyboardInterrupt())
    with interruption, pytest.raises(KeyboardInterrupt):
        yield


def sample_train_sample(
    world: World, *, config_file: Path, overrides: list[str], prompts: Prompts, interrupted_pass: int | None = None
) -> dict[str, Any]:
    """Responses before and after an optimizer step, drawn with the same random numbers, and the weights of the latter.

    A call before all that is interrupted in one of its passes, if it is given; the result has what that leaves.
    """
    sampling = Sampling.prepare(world, config_file=config_file, overrides=overrides)
    student, weights = sampling.student, sampling.weights
    if interrupted_pass is not None:
        with interrupted_at(interrupted_pass):
            sampling.sample(prompts, step=2)
    left = {
        "training": student.model.training,
        "gradients_on": torch.is_grad_enabled(),
        "copied_bytes": weights.held_bytes if isinstance(weights, InferenceCopy) else None,
    }
    before = responses(sampling.sample(prompts, step=1))
    sampling.train(prompts)
    after = responses(sampling.sample(prompts, step=1))
    return {"left": left, "before": before, "after": after, "weights": full_weights(student.model)}


def run_out_of_memory(
    world: World, *, config_file: Path, overrides: list[str], prompts: Prompts, most_rows: list[int]
) -> dict[str, Any]:
    """Two global batches on ranks whose memory is enough for `most_rows` rows each."""
    sampling = Sampling.prepare(world, config_file=config_file, overrides=overrides)
    results: dict[str, Any] = {"error": None, "said": []}
    with failing_above(most_rows[world.rank], error=RuntimeError(NO_MEMORY)) as num_rows:
        for step in (1, 2):
            try:
                results[step] = responses(sampling.sample(prompts, step=step))
            except UserError as error:
                results["error"] = (type(error).__name__, str(error))
                break
            results["said"].append(list(sampling.said))
            results["rows"] = max(num_rows)
            num_rows.clear()
            sampling.said.clear()
    return results | {"training": sampling.student.model.training, "gradients_on": torch.is_grad_enabled()}


def run_out_of_real_memory(world: World, *, config_file: Path, prompts: Prompts, spare_bytes: int) -> dict[str, Any]:
    """Sample in half the budget, then in all of it, with `spare_bytes` of memory to go."""
    halved = Sampling.prepare(world, config_file=config_file, overrides=["generation.max_batch_tokens=8192"])
    expected = responses(halved.sample(prompts, step=1))
    sampling = Sampling.prepare(world, config_file=config_file, overrides=["generation.max_batch_tokens=16384"])
    status = Path("/proc/self/status").read_text()
    used = 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + spare_bytes, before[1]))
    try:
        got = responses(sampling.sample(prompts, step=1))
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    return {"same": got == expected, "said": sampling.said}


def fail_alone(rank: int, port: int, config_file: Path, overrides: list[str], prompts: Prompts) -> None:
    """The whole life of one of two processes without a launcher; sampling raises on the second alone."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    world = start_world()
    start_deepspeed()
    sampling = Sampling.prepare(world, config_file=config_file, overrides=overrides)
    world.barrier()
    with failing_above(0 if rank == 1 else 100, error=ValueError("rank 1 alone")):
        sampling.sample(prompts, step=1)
