"""A look at every step: numbers that are not finite end the run, and suspicious ones are said once."""

import json
import math
import statistics
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from kd.config.schema import Config
from kd.data.loader import ExampleBatch
from kd.distributed import World
from kd.errors import UserError
from kd.files import write_atomically
from kd.train.console import Record
from kd.zero.recorder import StepMetrics

_HISTORY = 20
"""Logged steps whose median a loss is compared with."""
_SPIKE = 3.0
_SHOWN = 3
"""Rows that an error names."""


class Watch:
    """Looks at each step's numbers on all ranks, and at the records that are logged."""

    def __init__(self, run_dir: Path, *, config: Config, rolls_out: bool, world: World) -> None:
        self._run_dir = run_dir
        self._world = world
        # A gradient that fp16's loss scale has made overflow: the update is skipped and the scale decreases.
        self._may_overflow = config.model.dtype == "fp16"
        self._limit = config.generation.max_new_tokens if rolls_out else None
        self._losses: deque[float] = deque(maxlen=_HISTORY)
        self._said: set[str] = set()

    def check_step(self, metrics: StepMetrics, batch: ExampleBatch, *, last_saved: int) -> None:
        """Check that a step's losses and gradients are finite; all ranks call it together.

        Raises:
            UserError: on all ranks, with the number, its rank and the rows, which are written to the run directory.
        """
        numbers = {
            name: torch.as_tensor(value, device=self._world.device).detach().double()
            for name, value in {**metrics.token_means, **metrics.values}.items()
            if not (self._may_overflow and "grad_norm" in name)
        }
        broken = torch.zeros((), dtype=torch.int64, device=self._world.device)
        if numbers:
            broken += ~torch.stack([number.isfinite().all() for number in numbers.values()]).all()
        # Before the next rollouts: sampling from NaN ends in an index error.
        if not self._world.max_across_ranks(broken).item():
            return
        found = {name: str(float(number)) for name, number in numbers.items() if not math.isfinite(number)}
        rows = [_describe(example) for example in batch.examples]
        shares = self._world.gather_objects({"numbers": found, "rows": rows})
        path = self._run_dir / f"diverged-step-{batch.step}.json"
        if self._world.is_main:
            write_atomically(path, json.dumps({"step": batch.step, "ranks": shares}, indent=1) + "\n")
        raise UserError(self._diverged(shares, step=batch.step, path=path, last_saved=last_saved))

    def check_results(self, results: Record, *, step: int) -> None:
        """Check that the numbers of a validation are finite; they are the same on all ranks.

        Raises:
            UserError: one is not.
        """
        for name, value in results.items():
            if not math.isfinite(value):
                raise UserError(f"{name} after step {step} is {value}: training has diverged; {_REMEDY}")

    def check_weights(self, broken: list[str], *, step: int) -> None:
        """Check that no tensor of the student is in `broken`.

        Raises:
            UserError: one is: nothing of this step is saved.
        """
        if broken:
            raise UserError(
                f"after step {step}, {broken[0]} of the student has values that are NaN or infinite: training has"
                f" diverged, and this step is not saved; {_REMEDY}"
            )

    def notice(self, record: Record) -> Iterator[str]:
        """What is suspicious about a logged step, each kind once."""
        for kind, sentence in self._suspicions(record):
            if kind not in self._said:
                self._said.add(kind)
                yield f"step {record['step']}: {sentence}"

    def _suspicions(self, record: Record) -> Iterator[tuple[str, str]]:
        length = record.get("mean_response_length", 0)
        if self._limit is not None and length >= self._limit:
            yield (
                "limit",
                f"every rollout reaches generation.max_new_tokens={self._limit}; raise it, or fine-tune the student"
                " first if it does not end its responses",
            )
        if self._limit is not None and length <= 1:
            yield "empty", "every rollout ends at once: the student has collapsed, or the template ends its turn"
        loss = next((record[name] for name in ("student_kd", "cross_entropy") if name in record), None)
        if loss is None:
            return
        if len(self._losses) == _HISTORY and loss > _SPIKE * (usual := statistics.median(self._losses)) > 0:
            yield "spike", f"the loss is {loss:.3g}, usually {usual:.3g}; lower the learning rates if it stays"
        self._losses.append(float(loss))

    def _diverged(self, shares: list[dict[str, Any]], *, step: int, path: Path, last_saved: int) -> str:
        # A gradient is reduced over the ranks: every one of them has it then.
        rank, share = next((rank, share) for rank, share in enumerate(shares) if share["numbers"])
        name, value = next(iter(share["numbers"].items()))
        sources = [row["source"] for row in share["rows"]]
        more = ", …" if len(sources) > _SHOWN else ""
        saved = f"the latest checkpoint is from step {last_saved}" if last_saved else "there is no checkpoint yet"
        return (
            f"step {step}: {name} is {value} on rank {rank} (rows {', '.join(sources[:_SHOWN])}{more}; all in"
            f" {path.name}): training has diverged; {saved}; {_REMEDY}"
        )


_REMEDY = "lower the rates: the same command with run.resume=changed and, for example, optimizer.learning_rate=1e-6"


def _describe(example: Any) -> dict[str, Any]:
    response = None if example.response_ids is None else example.response_ids.tolist()
    return {"source": example.source, "prompt_ids": example.prompt_ids.tolist(), "response_ids": response}
