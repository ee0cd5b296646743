"""The steps of one method, run by the same parts as a training."""

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from evaluation.bench.communication import CollectiveBytes
from evaluation.bench.flops import PhaseFlops
from evaluation.bench.presets import Case
from kd.config.schema import Config
from kd.distributed import World, start_world
from kd.methods import load_config
from kd.train.assemble import assemble
from kd.train.checkpoint import Checkpoints
from kd.train.console import Record, RunConsole
from kd.train.inputs import read_inputs
from kd.train.run_directory import LOG_FILE, prepare_run_directory
from kd.train.trainer import Trainer
from kd.zero.engine import start_deepspeed
from kd.zero.recorder import PHASES

WARM_UP_STEPS = 3
"""Steps before those that count: memory, threads and compiled kernels have settled then."""
EXTRA_STEPS = WARM_UP_STEPS + 2
"""Steps of a run that are not timed. One is for counting. Another is never run: PromptKD's last step has no
regularization and is cheaper."""
COLUMNS = (*PHASES, "other")
"""What the seconds of a step are split into."""


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Bytes of the rank with the largest peak, loading included."""

    allocated: int
    """By tensors on a GPU; on a CPU resident in the whole process, interpreter and libraries included."""
    reserved: int | None
    """By torch's allocator on a GPU; None on a CPU."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of one method's step: medians over the measured steps, and counts of one more step of the first rank."""

    case: Case
    step_seconds: float
    seconds: dict[str, float]
    """By `COLUMNS`."""
    tokens_per_second: float
    """Response tokens of all ranks."""
    num_flops: dict[str, int]
    """By phase, and `total`."""
    num_bytes: dict[str, int]
    """Moved by collective operations: gathered, reduced, other."""
    peak: PeakMemory
    all_step_seconds: list[float]
    """End to end, from the end of the step before."""


def measure_steps(case: Case, file: Path, fields: Sequence[str], num_steps: int) -> StepCost:
    """Train `num_steps` steps after those that warm up, as one rank of all.

    Raises:
        UserError: on every rank alike, if the run cannot be assembled.
    """
    # Progress bars of loading would interrupt the run's own lines.
    transformers.utils.logging.disable_progress_bar()
    return measure_steps_on(start_world(), case, load_config(file, overrides=fields), num_steps)


def measure_steps_on(world: World, case: Case, config: Config, num_steps: int) -> StepCost:
    """The same on ranks that have already met."""
    with assembled(config, world=world) as trainer:
        trainer.log.restart_clock()
        num_timed = WARM_UP_STEPS + num_steps
        records = [train_step(trainer, step) for step in range(1, num_timed + 1)][WARM_UP_STEPS:]
        peak = _peak(records[-1], world=world)
        with CollectiveBytes() as collectives, PhaseFlops() as flops:
            train_step(trainer, num_timed + 1)

    def median(name: str) -> float:
        return float(statistics.median(record.get(name, 0.0) for record in records))

    seconds: dict[str, float] = {phase: median(f"{phase}_seconds") for phase in PHASES}
    seconds["other"] = max(0.0, median("step_seconds") - sum(seconds.values()))
    return StepCost(
        case=case,
        step_seconds=median("step_seconds"),
        seconds=seconds,
        tokens_per_second=median("tokens_per_second"),
        num_flops={phase: flops.num_flops.get(phase, 0) for phase in PHASES} | {"total": flops.get_total_flops()},
        num_bytes=collectives.num_bytes,
        peak=peak,
        all_step_seconds=[float(record["step_seconds"]) for record in records],
    )


def train_step(trainer: Trainer, step: int) -> Record:
    """One step of the trainer's loop, without validation and checkpoints."""
    trainer.log.add(trainer.step(step))
    record = trainer.log.close_interval(step=step, epoch=trainer.loader.epoch_at(step))
    trainer.console.report(record)
    return record


def _peak(record: Record, *, world: World) -> PeakMemory:
    reserved = None
    if world.device.type == "cuda":
        local = torch.tensor(torch.cuda.max_memory_reserved(world.device), device=world.device)
        reserved = int(world.max_across_ranks(local).item())
    return PeakMemory(allocated=int(record["peak_memory_bytes"]), reserved=reserved)


@contextmanager
def assembled(config: Config, *, world: World) -> Iterator[Trainer]:
    """The run's trainer, as `kd.train.assemble.run_on` puts it together; nothing is restored, saved or exported."""
    with world.agreed():
        inputs = read_inputs(config, world=world)
        run_dir = prepare_run_directory(
            inputs.config, contents=inputs.contents(), command=sys.argv, world=world, say=inputs.notes.append
        )
    start_deepspeed()
    with RunConsole(run_dir / LOG_FILE, is_main=world.is_main, num_steps=config.schedule.steps, done=0) as console:
        yield assemble(
            inputs,
            run_dir=run_dir,
            checkpoints=Checkpoints(run_dir, config=config, world=world),
            world=world,
            console=console,
            last_step=0,
        )
