"""What the ranks do in the tests of evaluation.cost."""

from pathlib import Path

from evaluation.cost.decoding import measure_speeds
from evaluation.cost.inputs import write_inputs
from evaluation.cost.options import DecodingOptions
from evaluation.cost.presets import PRESETS
from evaluation.cost.scaling_ranks import held_bytes
from kd.distributed import World
from kd.engines.teacher import Teacher


def write_models(world: World, directory: Path) -> None:
    if world.is_main:
        write_inputs(directory, PRESETS["tiny"], seed=0, device=world.device)
    world.barrier()


def decode(world: World, *, out: Path) -> tuple[list[str], set[int]]:
    """Names of the ways to decode, and the numbers of tokens that they made."""
    write_models(world, out / "models")
    options = DecodingOptions(out=out, preset="tiny", prompts=5, repeats=1)
    speeds = measure_speeds(PRESETS["tiny"], options, out=out, world=world)
    return [speed.name for speed in speeds], {speed.num_tokens for speed in speeds}


def hold_teacher(world: World, *, directory: Path) -> tuple[int, int]:
    """Bytes that this rank holds of a ZeRO-3 teacher, and bytes of all its parameters."""
    write_models(world, directory)
    config = PRESETS["tiny"].config(
        "gkd", inputs=directory, run_dir=directory, zero_stage=3, num_steps=1, num_ranks=world.size
    )
    model = Teacher(config).view.model
    return held_bytes(model), sum(parameter.ds_numel * parameter.element_size() for parameter in model.parameters())
