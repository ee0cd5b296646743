"""The main command: cost of each method's step, and the peer's."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from evaluation.bench.fresh import in_fresh_ranks
from evaluation.bench.inputs import write_inputs
from evaluation.bench.machine import describe_machine
from evaluation.bench.options import StepOptions
from evaluation.bench.peer_trl import check_trl, measure_trl
from evaluation.bench.presets import PRESETS
from evaluation.bench.report import Case, CaseCost, CostReport, make_out, print_report, write_report
from evaluation.bench.steps import measure_steps, num_steps_of_run
from evaluation.pictures import check_matplotlib
from kd.config.load import read_config
from kd.config.schema import Config
from kd.distributed import World, start_world
from kd.errors import UserError


def run_bench(options: StepOptions) -> None:
    """Measure on all ranks that a launcher has started; everything goes into --out.

    Raises:
        UserError: on every rank alike, before anything is measured if possible.
    """
    world = start_world()
    out = world.from_main(options.out)
    with world.agreed():
        check_matplotlib()
        if options.peer is not None:
            check_trl()
        if world.is_main:
            make_out(out)
    cases = [
        Case(method=method, zero_stage=stage, gather=gather)
        for method in options.methods
        for stage in options.zero
        # Only ZeRO-3 gathers.
        for gather in (options.gather if stage == 3 else ("auto",))
    ]
    with world.agreed():
        configs = [_read_config(case, options, out=out, world=world) for case in cases]
        # The peer has one way to train, the one that is gkd here.
        peer_config = _read_config(Case(method="gkd", zero_stage=0, gather="auto"), options, out=out, world=world)
    report = CostReport(
        preset_name=options.preset,
        global_batch=peer_config.schedule.global_batch,
        overrides=options.overrides,
        machine=describe_machine(num_ranks=world.size),
        costs=[],
        peer=None,
    )
    try:
        if world.is_main:
            write_inputs(out / "models", PRESETS[options.preset], device=world.device)
        world.barrier()
        for case, config in zip(cases, configs, strict=True):
            cost = in_fresh_ranks(measure_steps, config, options.steps, world=world)
            report = replace(report, costs=[*report.costs, CaseCost(case=case, **vars(cost))])
            _write(report, out=out, world=world)
        if options.peer is not None:
            peer = in_fresh_ranks(measure_trl, peer_config, options.steps, world.size, world=world)
            report = replace(report, peer=peer)
            _write(report, out=out, world=world)
    finally:
        # Also if a case or the peer fails: the others are measured.
        if world.is_main:
            shutil.rmtree(out / "models", ignore_errors=True)
            if report.costs:
                print_report(report, out=out)


def _read_config(case: Case, options: StepOptions, *, out: Path, world: World) -> Config:
    values: dict[str, Any] = PRESETS[options.preset].run_config(
        method=case.method,
        zero_stage=case.zero_stage,
        gather=case.gather,
        num_ranks=world.size,
        models=out / "models",
    )
    num_steps = num_steps_of_run(options.steps)
    values["schedule"]["steps"] = num_steps
    values["checkpoints"] = {"every": num_steps}
    values["run"] = {"dir": str(out / "runs" / case.name.replace(" ", "-")), "tensorboard": False}
    file = out / f"rank{world.rank}.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    config = read_config(file, overrides=options.overrides)
    file.unlink()
    if config.schedule.steps != num_steps:
        raise UserError(f"schedule.steps={config.schedule.steps}: the bench sets it; give --steps, the measured ones")
    return config


def _write(report: CostReport, *, out: Path, world: World) -> None:
    with world.agreed():
        if world.is_main:
            write_report(report, out=out)
