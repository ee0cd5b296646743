"""The plan of a run as text: memory by phase, what fits, and an estimate of its cost."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kd.config.packaged import find_preset, list_presets
from kd.config.schema import Config
from kd.errors import UserError
from kd.methods import load_config
from kd.plan.account import Account
from kd.plan.advice import find_advice
from kd.plan.estimate import ASSUMPTIONS, FAST, GPUS, SLOW, Gpu, checkpoint_seconds, step_seconds
from kd.plan.run import RESERVED_BYTES, FakeModels, Machine
from kd.plan.shapes import has_known_shapes

GIB = 2**30
_GIB_PER_GB = 0.985
"""A GPU of 80 GB has about 79 GiB."""
PRESET_MACHINES = ((4, "a100-40gb"), (4, "a100-80gb"), (8, "a100-80gb"))


def show_plan(
    config: Config, *, num_gpus: int, gpu_name: str, gpu_memory: str | None, gpus_per_host: int, num_rows: int | None
) -> bool:
    """Print the plan of a run, and return whether it fits.

    Raises:
        UserError: a machine that does not exist, or one that the run cannot use.
    """
    if gpu_name not in GPUS:
        raise UserError(f"--gpu {gpu_name}: expected one of {', '.join(GPUS)}; --gpu-memory gives another size")
    gpu = GPUS[gpu_name]
    gpu_bytes = int(gpu.gib * GIB) if gpu_memory is None else parse_memory(gpu_memory)
    machine = make_machine(num_gpus, gpu_bytes=gpu_bytes, gpus_per_host=gpus_per_host)
    check_batch(config, num_gpus=machine.num_gpus)
    account = Account(config=config, machine=machine)
    console = Console(width=None if sys.stdout.isatty() else 140, soft_wrap=True)
    console.print(_table(account))
    for line in (*_describe_memory(account), *_describe_cost(account, gpu=gpu, num_rows=num_rows)):
        console.print(line, markup=False, highlight=False)
    return account.fits


def show_presets() -> None:
    """Print a Markdown table of the presets whose models are there or published.

    Each cell has the peak in GiB on a machine, and the smallest change that makes it fit.
    """
    print("| preset | " + " | ".join(f"{num} × {name}" for num, name in PRESET_MACHINES) + " |")
    print("|---" * (len(PRESET_MACHINES) + 1) + "|")
    fakes = FakeModels()
    for name, _ in list_presets():
        config = load_config(find_preset(name))
        models = [model for model in (config.model.student, config.model.teacher) if model is not None]
        if not all(has_known_shapes(model) for model in models):
            # A preset for models of one's own.
            continue
        cells = []
        for num_gpus, gpu in PRESET_MACHINES:
            machine = make_machine(num_gpus, gpu_bytes=int(GPUS[gpu].gib * GIB), gpus_per_host=8)
            cells.append(_preset_cell(Account(config=config, machine=machine, fakes=fakes)))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def parse_memory(text: str) -> int:
    """Bytes of `80GB` (as GPUs are sold) or `79GiB`.

    Raises:
        UserError: another notation.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GB|GiB)", text, flags=re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise UserError(f"--gpu-memory {text}: expected a size such as 80GB or 79GiB")
    return int(float(match[1]) * (_GIB_PER_GB if match[2].upper() == "GB" else 1) * GIB)


def make_machine(num_gpus: int, *, gpu_bytes: int, gpus_per_host: int) -> Machine:
    """The machine of a plan.

    Raises:
        UserError: a number of GPUs that no machine has.
    """
    if num_gpus < 1 or gpus_per_host < 1:
        raise UserError(f"--gpus {num_gpus} --gpus-per-host {gpus_per_host}: expected at least 1 of each")
    return Machine(num_gpus=num_gpus, gpu_bytes=gpu_bytes, gpus_per_host=min(num_gpus, gpus_per_host))


def check_batch(config: Config, *, num_gpus: int) -> None:
    """Raise a UserError where the ranks do not divide the global batch, as training does."""
    if not config.schedule.divides(num_ranks=num_gpus):
        raise UserError(config.schedule.refusal(num_ranks=num_gpus))


def _table(account: Account) -> Table:
    """A row for each part, a column for each phase; an arrow marks the peak."""
    machine = account.machine
    title = f"{account.config.method}, {machine.num_gpus} × {machine.gpu_bytes / GIB:.1f} GiB: GiB on each GPU"
    table = Table("", *account.phases, title=title)
    parts = dict.fromkeys(part for phase in account.phases.values() for part, size in phase.items() if size)
    for part in parts:
        table.add_row(part, *(_cell(phase.get(part, 0)) for phase in account.phases.values()))
    table.add_section()
    marks = ["→ " if phase == account.peak_phase else "" for phase in account.phases]
    sums = [f"{sum(sizes.values()) / GIB:.1f}" for sizes in account.phases.values()]
    table.add_row("total", *(mark + total for mark, total in zip(marks, sums, strict=True)))
    return table


def _cell(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}" if num_bytes else ""


def _describe_memory(account: Account) -> Iterator[str]:
    machine, usable = account.machine, account.machine.usable_bytes / GIB
    peak = f"peak {account.peak / GIB:.1f} GiB in {account.peak_phase}"
    verdict = "fits" if account.fits else "does not fit"
    yield f"{verdict}: {peak}; {usable:.1f} GiB usable beside {RESERVED_BYTES / GIB:.0f} GiB for CUDA and NCCL"
    if not account.fits:
        advice = find_advice(account)
        if advice is None:
            yield "no change of layout, micro-batch or number of GPUs makes it fit; choose smaller models"
        else:
            changes = " ".join(advice.changes) or f"--gpus {advice.account.machine.num_gpus}"
            yield f"smallest change that fits: {changes} (peak {advice.account.peak / GIB:.1f} GiB)"
    once = [role for role, engine in account.engines.items() if account.gathers_once(engine)]
    by_layer = [role for role, engine in account.engines.items() if engine.stage == 3 and role not in once]
    if once:
        yield f"gathered once for each global batch: {', '.join(once)}"
    if by_layer:
        yield f"gathered layer by layer: {', '.join(by_layer)}"
    if account.rolls_out:
        layout = "the student's weights in place" if account.layout is None else _layout(account)
        slots = account.decoding_slots
        yield f"rollouts: {layout}; {account.decoding_rows} rows × {slots} tokens in flight on each rank"
    if machine.num_gpus > machine.gpus_per_host:
        yield (
            f"{len(machine.hosts)} hosts: partitioned models are gathered across hosts; a resident teacher"
            " (engine.teacher=ds_configs/zero0.json) is not"
        )


def _layout(account: Account) -> str:
    assert account.layout is not None
    names = {
        "gathered": "a full copy on each rank",
        "tensor_parallel": f"a copy divided over {account.layout.num_ranks} ranks",
        "zero3": "the student's weights in place, gathered for every token (slow: lower generation.max_batch_tokens)",
    }
    if account.layout.layout == "zero3" and account.gathers_once(account.student):
        return "the student's weights in place, gathered once"
    return names[account.layout.layout]


def _describe_cost(account: Account, *, gpu: Gpu, num_rows: int | None) -> Iterator[str]:
    fast, slow = (step_seconds(account, gpu=gpu, rates=rates) for rates in (FAST, SLOW))
    write = [f"{checkpoint_seconds(account, rates=rates):.0f}" for rates in (FAST, SLOW)]
    size, kept = account.student.checkpoint / 1e9, account.config.checkpoints.keep
    yield f"checkpoint: {size:.0f} GB, {' to '.join(write)} s; {kept} kept"
    yield f"estimate: {fast:.1f} to {slow:.1f} s per step"
    steps, what = _num_steps(account.config, num_rows=num_rows)
    hours = [steps * seconds * account.machine.num_gpus / 3600 for seconds in (fast, slow)]
    yield f"estimate: {hours[0]:.0f} to {hours[1]:.0f} GPU-hours for {what}, without validation"
    yield f"assumed: {ASSUMPTIONS}"


def _num_steps(config: Config, *, num_rows: int | None) -> tuple[float, str]:
    schedule = config.schedule
    if schedule.epochs is None:
        return schedule.steps, f"{schedule.steps} steps"
    train = config.data.train
    if num_rows is None and train is not None and train.endswith(".jsonl") and Path(train).is_file():
        with Path(train).open("rb") as file:
            num_rows = sum(1 for line in file if line.strip())
    if num_rows is None:
        return 1000, "1,000 steps (give --rows to count all of them)"
    steps = int(schedule.epochs * num_rows) // schedule.global_batch
    return steps, f"{steps:,} steps ({schedule.epochs:g} epochs of {num_rows:,} rows)"


def _preset_cell(account: Account) -> str:
    num_gpus, schedule, note = account.machine.num_gpus, account.config.schedule, ""
    micro_batch = schedule.micro_batch
    while micro_batch > 1 and schedule.global_batch % (micro_batch * num_gpus):
        micro_batch //= 2
    if micro_batch < schedule.micro_batch:
        # The ranks would not divide the global batch otherwise.
        note = f" (schedule.micro_batch={micro_batch})"
        schedule = replace(schedule, micro_batch=micro_batch)
        account = replace(account, config=replace(account.config, schedule=schedule))
    peak = f"{account.peak / GIB:.1f}{note}"
    if account.fits:
        return peak
    advice = find_advice(account)
    if advice is None:
        return f"{peak}: too large"
    return f"{peak}: {' '.join(advice.changes) or f'{advice.account.machine.num_gpus} GPUs'}"
