"""The steps of one method, run by the same parts as a real training."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evaluation.bench.communication import CollectiveBytes, Waiting, profile_waiting
from evaluation.bench.memory import PeakMemory, forget_peak, read_peak
from evaluation.bench.presets import WARM_UP_STEPS
from kd.config.schema import Config
from kd.cpu_memory import freed_memory_kept
from kd.distributed import World, start_deepspeed
from kd.train.assemble import assemble, read_inputs
from kd.train.checkpoint import Checkpoints, StateLayout
from kd.train.console import Record, RunConsole
from kd.train.run_directory import LOG_FILE, prepare_run_directory
from kd.train.trainer import Trainer
from kd.zero.config import student_deepspeed_config, zero_stage

COMMUNICATION_STEPS = 2
"""One for its seconds, one for its bytes."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSteps:
    """What was seen of a few steps; the same on all ranks but `waiting`, which is this rank's."""

    records: list[Record]
    """As a real run writes them to metrics.jsonl; `step_seconds` are end to end, from the end of the step before."""
    prompt_lengths: list[list[list[int]]]
    """Of each measured step, on each rank."""
    peak: PeakMemory
    """Loading included, the steps for communication not."""
    waiting: Waiting | None
    """None for a single rank."""
    num_bytes: dict[str, int]
    """Moved by this rank's collective operations in a step."""


def num_steps_of_run(num_steps: int) -> int:
    """K of a run with so many measured steps.

    One more than are run: PromptKD's last step has no regularization and is cheaper.
    """
    return WARM_UP_STEPS + num_steps + COMMUNICATION_STEPS + 1


def measure_steps(config: Config, *, num_steps: int, world: World) -> MeasuredSteps:
    """Train `num_steps` steps after the first ones, which warm up; all ranks together.

    Raises:
        UserError: on every rank alike, where the run cannot be assembled.
    """
    forget_peak(world)
    with _assembled(config, world=world) as trainer:
        trainer.log.restart_clock()
        measured = range(WARM_UP_STEPS + 1, WARM_UP_STEPS + num_steps + 1)
        records = [_step(trainer, step) for step in range(1, measured.stop)][WARM_UP_STEPS:]
        peak = read_peak(world)
        lengths = [[len(row.prompt_ids) for row in trainer.loader.window(step).examples] for step in measured]
        waiting, collectives = None, CollectiveBytes()
        if world.size > 1:
            waiting = profile_waiting(lambda: _step(trainer, measured.stop))
            with collectives:
                trainer.method.step(trainer.loader.window(measured.stop + 1))
    return MeasuredSteps(
        records=records,
        prompt_lengths=[list(step) for step in zip(*world.gather_objects(lengths), strict=True)],
        peak=peak,
        waiting=waiting,
        num_bytes=collectives.num_bytes,
    )


def _step(trainer: Trainer, step: int) -> Record:
    """One turn of the trainer's loop, without validation and checkpoints."""
    trainer.log.add(trainer.method.step(trainer.loader.window(step)))
    record = trainer.log.close_interval(step=step, epoch=trainer.loader.epoch_at(step))
    trainer.log.write(record)
    trainer.console.report(record)
    return record


@contextmanager
def _assembled(config: Config, *, world: World) -> Iterator[Trainer]:
    """As `kd.train.assemble.run_on` does it; nothing of it is restored, saved or exported."""
    with world.agreed():
        inputs = read_inputs(config, world=world)
        run_dir = prepare_run_directory(inputs.config, command=sys.argv, world=world)
    start_deepspeed()
    layout = StateLayout(num_ranks=world.size, zero_stage=zero_stage(student_deepspeed_config(config)))
    with RunConsole(
        Path(run_dir) / LOG_FILE, is_main=world.is_main, num_steps=config.schedule.steps, done=0
    ) as console:
        trainer = assemble(
            inputs,
            run_dir=run_dir,
            checkpoints=Checkpoints(run_dir, keep=1, layout=layout, world=world),
            world=world,
            console=console,
            last_step=0,
        )
        with freed_memory_kept():
            yield trainer
