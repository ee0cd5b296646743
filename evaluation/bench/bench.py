"""Cost of a training step by phase, with random models, for chosen methods and ZeRO stages:

  deepspeed --num_gpus 2 --module evaluation.bench --methods gkd,promptkd --zero 0,3 --peer trl

Each method trains through the same code as a real run, after three steps that warm up. section.field=value sets a
field of the configuration of all runs. Absolute times belong to one machine: compare ratios of one call, on a machine
that does nothing else. Five more commands, with their own --help:

  python -m evaluation.bench decoding    tokens per second of the decoder and of transformers' generate
  python -m evaluation.bench loss        time and memory of the fused loss and of a plain one
  python -m evaluation.bench memory      the byte account of `promptkd plan` against a step's tensors
  python -m evaluation.bench families    which model families pass the numeric probe
  python -m evaluation.bench gpu         all that a machine with GPUs can tell, within a time limit
"""

import importlib.util
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import transformers
import yaml

from evaluation.bench.fresh import in_fresh_ranks
from evaluation.bench.inputs import write_inputs
from evaluation.bench.peer_trl import measure_trl
from evaluation.bench.presets import PRESETS, Case, PresetName
from evaluation.bench.report import CostReport, print_report, write_report
from evaluation.bench.results import describe_machine, make_out
from evaluation.bench.steps import EXTRA_STEPS, measure_steps
from evaluation.command import Command
from evaluation.pictures import check_matplotlib
from kd.config.fields import Count, Section, option
from kd.config.schema import Config
from kd.distributed import World
from kd.errors import UserError
from kd.files import write_atomically
from kd.methods import load_config

_TRAINING_FIELD = re.compile(r"\w+\.\w+=")


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Section):
    preset: PresetName = option("cpu-small", help=f"models, batch and lengths: {', '.join(PRESETS)}")
    methods: tuple[str, ...] = option(("sft", "gkd", "promptkd"), help="as `method`: sft,gkd,promptkd")
    zero: tuple[Literal[0, 1, 2, 3], ...] = option(
        (3,), help="ZeRO stages; 3 partitions both models, 1 and 2 leave the teacher resident"
    )
    gather: tuple[Literal["auto", "layer", "model"], ...] = option(("auto",), help="`engine.gather` of ZeRO-3")
    steps: Count = option(3, help="measured steps of each method")
    peer: Literal["trl"] | None = option(
        None, help="trl: also time TRL's DistillationTrainer with the same shapes (extra bench)"
    )
    fields: tuple[str, ...] = option((), help="section.field=value of all runs; the flag may be left out")
    out: Path | None = option(None, help="new directory for the results; null for a new one in runs/")

    def __post_init__(self) -> None:
        if self.peer is not None and importlib.util.find_spec(self.peer) is None:
            raise UserError(f'peer: {self.peer} is not installed; pip install -e ".[bench]"')

    @property
    def cases(self) -> list[Case]:
        """Every method with every ZeRO stage; only ZeRO-3 gathers."""
        layouts = [(stage, how) for stage in self.zero for how in (self.gather if stage == 3 else ("auto",))]
        # --methods sft,gkd is one word.
        methods = ",".join(self.methods).split(",")
        cases = [Case(method=method, zero_stage=stage, gather=how) for method in methods for stage, how in layouts]
        return list(dict.fromkeys(cases))


COMMAND = Command(config=BenchConfig, program="python -m evaluation.bench", description=__doc__)


def separate_fields(words: Sequence[str]) -> list[str]:
    """A command line whose `section.field=value`, which are meant for the runs, follow --fields."""
    fields = [word for word in words if _TRAINING_FIELD.match(word)]
    others = [word for word in words if word not in fields]
    return [*others, "--fields", *fields] if fields else others


def run_bench(config: BenchConfig, world: World) -> None:
    """Measure on all ranks that a launcher has started.

    Raises:
        UserError: on every rank alike, before anything is measured if possible.
    """
    transformers.utils.logging.disable_progress_bar()
    # The peer trains in one way, the one that is gkd here.
    peer_cases = [] if config.peer is None else [Case(method="gkd", zero_stage=0)]
    out, global_batch = Path(), 0
    with world.agreed():
        check_matplotlib()
        if world.is_main:
            out = make_out(config.out, command="step")
            for case in (*config.cases, *peer_cases):
                global_batch = write_run(case, config, out=out, num_ranks=world.size).schedule.global_batch
    out, global_batch = world.from_main((out, global_batch))
    report = CostReport(
        preset_name=config.preset,
        global_batch=global_batch,
        overrides=list(config.fields),
        machine=describe_machine(num_ranks=world.size),
        costs=[],
    )
    try:
        if world.is_main:
            write_inputs(out / "models", PRESETS[config.preset], device=world.device)
        world.barrier()
        for case in config.cases:
            cost = in_fresh_ranks(measure_steps, case, case.file(out), config.fields, config.steps, world=world)
            report = replace(report, costs=[*report.costs, cost])
            write_report(report, out=out, world=world)
        for case in peer_cases:
            peer = in_fresh_ranks(measure_trl, case.file(out), config.fields, config.steps, world.size, world=world)
            report = replace(report, peer=peer)
            write_report(report, out=out, world=world)
    finally:
        # Also if a case or the peer fails: the others are measured.
        if world.is_main:
            shutil.rmtree(out / "models", ignore_errors=True)
            if report.costs:
                print_report(report, out=out)


def write_run(case: Case, config: BenchConfig, *, out: Path, num_ranks: int) -> Config:
    """Write the configuration of one case's run, which each process reads again, and check it."""
    num_steps = config.steps + EXTRA_STEPS
    values = PRESETS[config.preset].run_config(case, num_steps=num_steps, num_ranks=num_ranks, out=out)
    write_atomically(case.file(out), yaml.safe_dump(values))
    run = load_config(case.file(out), overrides=config.fields)
    if run.schedule.steps != num_steps:
        raise UserError(f"schedule.steps={run.schedule.steps}: the bench sets it; use --steps")
    return run
