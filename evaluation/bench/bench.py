"""The main command: cost of each method's step, and the peer's."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import transformers
import yaml

from evaluation.bench.fresh import in_fresh_ranks
from evaluation.bench.inputs import write_inputs
from evaluation.bench.peer_trl import check_trl, measure_trl
from evaluation.bench.presets import PRESETS, Case, Preset
from evaluation.bench.report import CostReport, print_report, write_report
from evaluation.bench.results import describe_machine, make_out
from evaluation.bench.steps import measure_steps, num_steps_of_run
from evaluation.pictures import check_matplotlib
from kd.config.schema import Config
from kd.distributed import World, start_world
from kd.errors import UserError
from kd.files import write_atomically
from kd.methods import load_config


def run_bench(
    *,
    out: Path,
    preset: str,
    methods: Sequence[str],
    zero: Sequence[int],
    gather: Sequence[str],
    steps: int,
    peer: str | None,
    overrides: list[str],
) -> None:
    """Measure on all ranks that a launcher has started; everything goes into `out`.

    Raises:
        UserError: on every rank alike, before anything is measured if possible.
    """
    transformers.utils.logging.disable_progress_bar()
    world = start_world()
    out = world.from_main(out)
    # Only ZeRO-3 gathers.
    layouts = [(stage, how) for stage in zero for how in (gather if stage == 3 else ("auto",))]
    cases = [Case(method=method, zero_stage=stage, gather=how) for method in methods for stage, how in layouts]
    # The peer trains in one way, the one that is gkd here.
    peer_cases = [] if peer is None else [Case(method="gkd", zero_stage=0)]
    configs: list[Config] = []
    with world.agreed():
        check_matplotlib()
        if peer is not None:
            check_trl()
        if world.is_main:
            make_out(out)
            make = partial(_make_config, PRESETS[preset], overrides=overrides, out=out, world=world, num_steps=steps)
            configs = [make(case) for case in (*cases, *peer_cases)]
    configs = world.from_main(configs)
    report = CostReport(
        preset_name=preset,
        global_batch=configs[0].schedule.global_batch,
        overrides=overrides,
        machine=describe_machine(num_ranks=world.size),
        costs=[],
    )
    try:
        if world.is_main:
            write_inputs(out / "models", PRESETS[preset], device=world.device)
        world.barrier()
        for case, config in zip(cases, configs, strict=False):
            cost = in_fresh_ranks(measure_steps, case, config, steps, world=world)
            report = replace(report, costs=[*report.costs, cost])
            _write(report, out=out, world=world)
        if peer is not None:
            report = replace(report, peer=in_fresh_ranks(measure_trl, configs[-1], steps, world.size, world=world))
            _write(report, out=out, world=world)
    finally:
        # Also if a case or the peer fails: the others are measured.
        if world.is_main:
            shutil.rmtree(out / "models", ignore_errors=True)
            if report.costs:
                print_report(report, out=out)


def _make_config(
    preset: Preset, case: Case, *, overrides: Sequence[str], out: Path, world: World, num_steps: int
) -> Config:
    total = num_steps_of_run(num_steps)
    file = out / f"{case.name}.yaml".replace(" ", "-")
    write_atomically(file, yaml.safe_dump(preset.run_config(case, num_steps=total, num_ranks=world.size, out=out)))
    config = load_config(file, overrides=overrides)
    file.unlink()
    if config.schedule.steps != total:
        raise UserError(f"schedule.steps={config.schedule.steps}: the bench sets it; use --steps")
    return config


def _write(report: CostReport, *, out: Path, world: World) -> None:
    with world.agreed():
        if world.is_main:
            write_report(report, out=out)
