"""The byte account of kd.plan against what the phases of a step allocate:

  deepspeed --num_gpus 2 --module evaluation.bench memory --presets cpu-small cpu-medium cpu-large

Tensors are counted while three real steps run: by torch's allocator on a GPU, by each operation's results on a CPU.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import yaml
from rich.table import Table

from evaluation.bench.fresh import in_fresh_ranks
from evaluation.bench.inputs import write_inputs
from evaluation.bench.presets import PRESETS, Case, PresetName
from evaluation.bench.results import GIB, describe_machine, make_out, print_results
from evaluation.bench.steps import assembled, train_step
from evaluation.command import Command
from evaluation.results import write_json
from kd.config.fields import Section, option
from kd.config.schema import Config
from kd.distributed import World, start_world
from kd.files import write_atomically
from kd.methods import load_config
from kd.plan import Account, LiveBytes, Machine
from kd.zero.recorder import PHASES

NUM_STEPS = 3
"""From the second step on, all of the optimizer's state exists."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Section):
    presets: tuple[PresetName, ...] = option(("cpu-small",), help=f"models, batch and lengths: {', '.join(PRESETS)}")
    methods: tuple[str, ...] = option(("promptkd",), help="as `method`")
    zero: tuple[Literal[0, 1, 2, 3], ...] = option((0, 3), help="ZeRO stages")
    out: Path | None = option(None, help="new directory for the results; null for a new one in runs/")


MEMORY = Command(config=MemoryConfig, program="python -m evaluation.bench memory", description=__doc__)


class PhasePeaks(LiveBytes):
    """Peak bytes of each phase, which is a `torch.profiler.record_function` range of the step."""

    def __init__(self) -> None:
        super().__init__(counts_inputs=True)
        self.peaks: dict[str, int] = {}
        self._phases: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        profiler = torch.ops.profiler
        if func is profiler._record_function_enter_new.default:
            self._phases.append(args[0])
            # Optimizers have ranges of their own inside a phase.
            if args[0] in PHASES:
                self.peak = self.now
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is profiler._record_function_exit._RecordFunction:
            phase = self._phases.pop()
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else self.peak
            self.peaks[phase] = max(self.peaks.get(phase, 0), peak)
        return result


def run_memory(config: MemoryConfig, world: World) -> None:
    """Measure on all ranks that a launcher has started, and write memory.json."""
    transformers.utils.logging.disable_progress_bar()
    out = world.from_main(make_out(config.out, command="memory") if world.is_main else Path())
    table = Table("preset", "case", "phase", "planned GiB", "measured GiB", "planned / measured")
    results = []
    for name in config.presets:
        if world.is_main:
            write_inputs(out / name / "models", PRESETS[name], device=world.device)
        for case in (Case(method=method, zero_stage=zero) for method in config.methods for zero in config.zero):
            file = case.file(out / name)
            values = PRESETS[name].run_config(case, num_steps=NUM_STEPS, num_ranks=world.size, out=out / name)
            if world.is_main:
                write_atomically(file, yaml.safe_dump(values))
            world.barrier()
            measured, planned = in_fresh_ranks(_measure, file, world=world)
            for phase, num_bytes in planned.items():
                ratio = f"{num_bytes / measured[phase]:.2f}"
                table.add_row(name, case.name, phase, _gib(num_bytes), _gib(measured[phase]), ratio)
            results.append({"preset": name, "case": case.name, "planned": planned, "measured": measured})
    if world.is_main:
        machine = describe_machine(num_ranks=world.size)
        write_json(out / "memory.json", {"results": results, "machine": machine})
        print_results(table, machine=machine, out=out)


def _measure(file: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes by phase, measured and planned; `peak` is the step's."""
    transformers.utils.logging.disable_progress_bar()
    world, config = start_world(), load_config(file)
    with PhasePeaks() as live, assembled(config, world=world) as trainer:
        for step in range(1, NUM_STEPS + 1):
            train_step(trainer, step)
    account = account_of(config, world=world)
    planned: dict[str, int] = {phase: sum(parts.values()) for phase, parts in account.phases.items()}
    measured = {phase: live.peaks[phase] for phase in planned}
    return {**measured, "peak": max(measured.values())}, {**planned, "peak": account.peak}


def account_of(config: Config, *, world: World) -> Account:
    """The account of a run on the ranks of this machine."""
    on_gpu = world.device.type == "cuda"
    available = torch.cuda.mem_get_info()[1] if on_gpu else 2**40
    machine = Machine(num_gpus=world.size, gpu_bytes=available, gpus_per_host=world.size, on_gpu=on_gpu)
    return Account(config=config, machine=machine)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3f}"
