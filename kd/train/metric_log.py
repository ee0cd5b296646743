"""metrics.jsonl and its mirrors: one object per logged step, reduced over the ranks once per interval."""

import hashlib
import importlib.util
import json
import math
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from kd.config.schema import Config
from kd.distributed import World
from kd.errors import UserError
from kd.files import read_log, write_atomically
from kd.train.console import Record
from kd.zero.recorder import PHASES, StepMetrics

FILE_NAME = "metrics.jsonl"


class MetricLog:
    """Collects steps on the device; reduces, writes and returns them when an interval ends."""

    def __init__(self, run_dir: Path, *, config: Config, world: World, last_step: int) -> None:
        """Append to the run's metrics, after `last_step`, the step that a resumed run starts from."""
        self._world = world
        self._interval: list[StepMetrics] = []
        self._elapsed = 0.0
        self._started = time.perf_counter()
        self._global_batch = config.schedule.global_batch
        self._mirrors: list[Callable[[Record], None]] = []
        self._path = run_dir / FILE_NAME
        if world.is_main:
            _forget_steps_after(self._path, last_step)
            self._mirrors = _open_mirrors(run_dir, config=config, last_step=last_step)

    def add(self, metrics: StepMetrics) -> None:
        """Add one step without synchronising with the device."""
        self._interval.append(metrics)
        self._count_time()

    def close_interval(self, *, step: int, epoch: float) -> Record:
        """Means over the steps since the last call, the same on all ranks."""
        steps = self._interval
        trained = [metrics for metrics in steps if metrics.num_tokens]
        tokens = sum(metrics.num_tokens for metrics in trained)
        seconds = [metrics.stopwatch.seconds() for metrics in steps]
        # After the stopwatches have synchronised with a GPU, whose work belongs to these steps.
        self._count_time()
        elapsed = self._elapsed / len(steps)
        record: Record = {"step": step, "epoch": epoch}
        record |= self._token_means(trained)
        for name, value in steps[-1].values.items():
            # The gradient of a step that fp16's loss scale has skipped is not finite.
            record |= {name: float(value)} if math.isfinite(value) else {}
        for name in PHASES:
            if any(name in spans for spans in seconds):
                record[f"{name}_seconds"] = sum(spans.get(name, 0.0) for spans in seconds) / len(steps)
        record |= {
            "response_tokens": tokens / len(steps),
            "mean_response_length": tokens / (len(steps) * self._global_batch),
            "step_seconds": elapsed,
            "tokens_per_second": tokens / len(steps) / elapsed,
            "peak_memory_bytes": self._peak_memory(),
        }
        self._interval, self._elapsed = [], 0.0
        return record

    def write(self, record: Record) -> None:
        """Append a record to metrics.jsonl and its mirrors, on the main rank."""
        if not self._world.is_main:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for mirror in self._mirrors:
            mirror(record)

    def _count_time(self) -> None:
        now = time.perf_counter()
        self._elapsed += now - self._started
        self._started = now

    def restart_clock(self) -> None:
        """Exclude a validation or a checkpoint from the next step's time."""
        self._started = time.perf_counter()

    def _token_means(self, trained: list[StepMetrics]) -> Record:
        # The terms of a step may differ from those of the next one: each mean is over the steps that have it.
        names = list(dict.fromkeys(name for metrics in trained for name in metrics.token_means))
        if not names:
            return {}
        steps_of = {name: [metrics for metrics in trained if name in metrics.token_means] for name in names}
        parts = [torch.stack([m.token_means[name].double() * m.num_tokens for m in steps_of[name]]) for name in names]
        sums = torch.stack([part.sum() for part in parts])
        self._world.sum_across_ranks(sums)
        means: Record = {}
        for name, value in zip(names, sums.tolist(), strict=True):
            means[name] = value / sum(metrics.num_tokens for metrics in steps_of[name])
        return means

    def _peak_memory(self) -> int:
        if self._world.device.type == "cuda":
            local = torch.cuda.max_memory_allocated(self._world.device)
        else:
            local = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        largest = torch.tensor(local, dtype=torch.int64, device=self._world.device)
        return int(self._world.max_across_ranks(largest).item())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Read all records of a run, which may still be in progress.

    Raises:
        UserError: no metrics in `run_dir`, or a line that is not a record.
    """
    path = run_dir / FILE_NAME
    if not path.exists():
        raise UserError(f"{run_dir}: has no {FILE_NAME}; give the run.dir of a training")
    records = read_log(path)
    for number, record in enumerate(records, start=1):
        if "step" not in record:
            raise UserError(f"{path}:{number}: expected a record with a step; remove that line")
    return records


def _forget_steps_after(path: Path, last_step: int) -> None:
    """Remove records that a resumed run will write again."""
    if path.exists():
        kept = [record for record in read_log(path) if record["step"] <= last_step]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept))


def check_trackers(config: Config) -> None:
    """Check that what the run shall report to is installed.

    Raises:
        UserError: run.wandb is set and wandb is missing.
    """
    if config.run.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("run.wandb is set but wandb is not installed; pip install wandb, or set run.wandb=null")


def _open_mirrors(run_dir: Path, *, config: Config, last_step: int) -> list[Callable[[Record], None]]:
    mirrors: list[Callable[[Record], None]] = []
    if config.run.tensorboard and importlib.util.find_spec("tensorboard") is not None:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=last_step + 1)

        def to_tensorboard(record: Mapping[str, float | int]) -> None:
            for name, value in record.items():
                writer.add_scalar(name, value, int(record["step"]))
            writer.flush()

        mirrors.append(to_tensorboard)
    if config.run.wandb is not None:
        import wandb

        # One id for one directory: a resumed run continues the same W&B run.
        identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
        reporter = wandb.init(
            project=config.run.wandb, dir=str(run_dir), name=run_dir.name, id=identity, resume="allow"
        )
        mirrors.append(lambda record: reporter.log(dict(record), step=int(record["step"])))
    return mirrors
