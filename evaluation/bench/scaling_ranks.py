"""What the ranks do that `evaluation.bench.scaling` starts."""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from evaluation.bench.axes import AXES, BASE
from evaluation.bench.bench import measure_case, rates_of
from evaluation.bench.inputs import write_inputs
from evaluation.bench.outputs import write_json
from evaluation.bench.presets import PRESETS, Preset
from evaluation.bench.rates import Rates
from evaluation.bench.summary import Case
from kd.distributed import World, end_world, start_deepspeed, start_world
from kd.models.teacher import Teacher

_CASE = Case(method="promptkd", zero_stage=3)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    preset: Preset
    numbers: dict[str, Any]


def measure_memory(world: World, *, work: Path) -> list[int]:
    """The bytes of the teacher's parameters on each rank."""
    preset = PRESETS["cpu-small"]
    if world.is_main:
        write_inputs(work / "models", preset, seed=0, device=world.device)
    world.barrier()
    config = preset.config("gkd", inputs=work / "models", run_dir=work, zero_stage=3, num_steps=1, num_ranks=world.size)
    return world.gather_objects(held_bytes(Teacher(config).view.model))


def held_bytes(model: nn.Module) -> int:
    """Bytes that this rank holds of a ZeRO-3 model: its shards, and the small parameters that are kept whole."""
    # Outside a forward pass a sharded parameter is itself empty.
    return sum(parameter.ds_tensor.nbytes + parameter.nbytes for parameter in map(_sharded, model.parameters()))


def _sharded(parameter: nn.Parameter) -> Any:
    """The same parameter, to which DeepSpeed has added its shard."""
    return parameter


def measure_axes(world: World, *, work: Path, num_steps: int) -> dict[str, list[dict[str, Any]]]:
    """PromptKD's step at every value of every axis."""
    measured: list[_Measured] = []
    rates = rates_of(BASE, world=world)

    def numbers(preset: Preset) -> dict[str, Any]:
        # All axes pass through the same base.
        known = next((one for one in measured if one.preset == preset), None)
        if known is None:
            known = _Measured(
                preset=preset, numbers=_measure_point(preset, work=work, num_steps=num_steps, rates=rates, world=world)
            )
            measured.append(known)
        return known.numbers

    return {axis.name: [{"value": value} | numbers(axis.preset(value)) for value in axis.values] for axis in AXES}


def _measure_point(preset: Preset, *, work: Path, num_steps: int, rates: Rates, world: World) -> dict[str, Any]:
    inputs, runs = work / "models", work / "runs"
    if world.is_main:
        # Another run in the same directory would go on where this one ended.
        shutil.rmtree(runs, ignore_errors=True)
        shutil.rmtree(inputs, ignore_errors=True)
        write_inputs(inputs, preset, seed=0, device=world.device)
    world.barrier()
    cost = measure_case(
        case=_CASE, preset=preset, inputs=inputs, runs=runs, num_steps=num_steps, rates=rates, world=world
    )
    return {
        "step_seconds": cost.step_seconds,
        "seconds": cost.seconds,
        "floor_seconds": cost.floor.step,
        "moved_bytes": sum(cost.num_bytes.values()),
        "peak_bytes": cost.peak.allocated,
    }


def main() -> int:
    """Do what the command line says, on one rank of torchrun."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=["memory", "axes"])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="gets models and result.json")
    parser.add_argument("--steps", type=int, default=3, metavar="N")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    world = start_world()
    start_deepspeed()
    if arguments.job == "memory":
        found: object = measure_memory(world, work=arguments.work)
    else:
        found = measure_axes(world, work=arguments.work, num_steps=arguments.steps)
    if world.is_main:
        write_json(arguments.work / "result.json", found)
    end_world()
    return 0


if __name__ == "__main__":
    sys.exit(main())
