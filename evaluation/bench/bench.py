"""The main command: the step of each method, its floor, and the peer's step."""

import shutil
from dataclasses import replace
from pathlib import Path

import transformers

from evaluation.bench.fresh import in_fresh_ranks
from evaluation.bench.inputs import write_inputs
from evaluation.bench.machine import describe_machine
from evaluation.bench.memory import forget_peak
from evaluation.bench.operations import ModelShape
from evaluation.bench.options import StepOptions
from evaluation.bench.outputs import make_out
from evaluation.bench.peer_trl import check_trl, measure_trl
from evaluation.bench.presets import PRESETS, ROLES, Preset
from evaluation.bench.rates import Rates, measure_rates
from evaluation.bench.report import CostReport, print_report, write_numbers
from evaluation.bench.step_picture import draw_steps
from evaluation.bench.steps import measure_steps, num_steps_of_run
from evaluation.bench.summary import Case, StepCost, summarise
from evaluation.pictures import check_matplotlib
from kd.distributed import World, end_world, start_deepspeed, start_world
from kd.losses.products import ProductsName, choose_products
from kd.models.causal_lm import DTYPES


def run_bench(options: StepOptions) -> None:
    """Measure on all ranks that a launcher has started, then the peer, and write everything into --out.

    Raises:
        UserError: on every rank alike, before anything is measured, wherever that is possible.
    """
    world = start_world()
    out = world.from_main(options.out)
    with world.agreed():
        check_matplotlib()
        if options.peer is not None:
            check_trl(num_ranks=world.size)
        if world.is_main:
            make_out(out)
    try:
        choose_products(options.products)
        report = measure(options, out=out, world=world)
        forget_peak(world)
        # The other ranks leave, with their memory and cores, before the peer starts.
        end_world()
        if world.is_main:
            _finish(report, options, out=out)
    finally:
        if world.is_main:
            # Random weights: the preset makes the same again.
            shutil.rmtree(out / "models", ignore_errors=True)


def _finish(report: CostReport, options: StepOptions, *, out: Path) -> None:
    """Measure the peer, and show what there is, also where the peer fails."""
    try:
        if options.peer is not None:
            peer = measure_trl(
                report.preset,
                inputs=out / "models",
                out=out,
                num_steps=options.steps,
                num_ranks=report.machine["num_ranks"],
                num_threads=report.machine["threads_per_rank"],
            )
            report = replace(report, peer=peer)
            write_numbers(report, out=out)
    finally:
        draw_steps(report, out=out)
        print_report(report, out=out)


def measure(options: StepOptions, *, out: Path, world: World) -> CostReport:
    """All cases, one after the other; all ranks together. What is measured is written after each of them."""
    preset = PRESETS[options.preset]
    if world.is_main:
        write_inputs(out / "models", preset, seed=0, device=world.device)
    world.barrier()
    # It silences torch where DeepSpeed and this measurement use its older names.
    start_deepspeed()
    rates = rates_of(preset, world=world)
    cases = [
        Case(method=method, zero_stage=stage, gather=gather)
        for method in options.methods
        for stage in options.zero
        # Nothing is gathered of models that are not sharded.
        for gather in (options.gather if stage == 3 else ("auto",))
    ]
    machine = describe_machine(num_ranks=world.size) | {"products": options.products}
    report = CostReport(preset_name=options.preset, preset=preset, machine=machine, rates=rates, costs=[], peer=None)
    for case in cases:
        cost = in_fresh_ranks(
            measure_case,
            world=world,
            case=case,
            preset=preset,
            inputs=out / "models",
            runs=out / "runs",
            num_steps=options.steps,
            products=options.products,
            rates=rates,
        )
        report = replace(report, costs=[*report.costs, cost])
        with world.agreed():
            if world.is_main:
                # A later case may run out of memory.
                write_numbers(report, out=out)
    return report


def rates_of(preset: Preset, *, world: World) -> Rates:
    """This machine's rates for products like those of the preset's models."""
    dtype = DTYPES[preset.dtype]
    shapes: dict[str, ModelShape] = {role: ModelShape.of(preset.model_config(role), dtype=dtype) for role in ROLES}
    return measure_rates(shapes, rows=preset.micro_batch * preset.longest, dtype=dtype, world=world)


def measure_case(
    *,
    case: Case,
    preset: Preset,
    inputs: Path,
    runs: Path,
    num_steps: int,
    rates: Rates,
    world: World,
    products: ProductsName = "onednn",
) -> StepCost:
    """Steps of one method with one ZeRO stage, in a process of their own."""
    choose_products(products)
    # Bars for loading would break into the run's own lines.
    transformers.utils.logging.disable_progress_bar()
    config = preset.config(
        case.method,
        inputs=inputs,
        run_dir=runs / case.name.replace(" ", "-"),
        zero_stage=case.zero_stage,
        gather=case.gather,
        num_steps=num_steps_of_run(num_steps),
        num_ranks=world.size,
    )
    steps = measure_steps(config, num_steps=num_steps, world=world)
    return summarise(case, preset, steps, rates=rates, num_ranks=world.size)
