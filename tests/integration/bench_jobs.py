"""What the ranks do in the tests of evaluation.bench."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from evaluation.bench.__main__ import main
from evaluation.bench.decoding import measure_speeds, run_decoding
from evaluation.bench.inputs import write_inputs
from evaluation.bench.options import DecodingOptions
from evaluation.bench.presets import PRESETS
from evaluation.bench.scaling_ranks import held_bytes
from kd.distributed import World, free_port
from kd.errors import UserError
from kd.models.teacher import Teacher


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


@contextmanager
def _alone() -> Iterator[None]:
    """A process of its own as the only rank of a run."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    yield


def measure_without_teacher(out: Path) -> int:
    """Exit code of a command whose second case cannot load its teacher."""

    def write(directory: Path, *arguments: Any, **options: Any) -> None:
        write_inputs(directory, *arguments, **options)
        shutil.rmtree(directory / "teacher")

    argv = ["--preset", "tiny", "--methods", "sft,gkd", "--zero", "0", "--steps", "1", "--out", str(out)]
    with _alone(), patch("evaluation.bench.bench.write_inputs", write):
        return main(argv)


def measure_with_failing_peer(out: Path) -> int:
    """Exit code of a command whose peer fails after the only case."""

    def fail(*arguments: Any, **options: Any) -> None:
        raise UserError("the peer failed")

    argv = ["--preset", "tiny", "--methods", "sft", "--zero", "0", "--steps", "1", "--peer", "trl", "--out", str(out)]
    with _alone(), patch("evaluation.bench.bench.check_trl"), patch("evaluation.bench.bench.measure_trl", fail):
        return main(argv)


def decode_until_failure(out: Path) -> None:
    """Decode until the second way fails."""
    options = DecodingOptions(out=out, preset="tiny", prompts=2, repeats=1)
    with _alone(), patch("evaluation.bench.decoding.transformers_generate", side_effect=MemoryError):
        run_decoding(options)
