"""Contexts of methods without models, for what a method does between them."""

from pathlib import Path
from typing import Any

from kd.config.schema import Config
from kd.data.global_batch import GlobalBatcher
from kd.distributed import World
from kd.methods.base import MethodContext
from kd.zero.recorder import Recorder


def make_context(config: Config, *, world: World, sampler: Any) -> MethodContext:
    nothing: Any = None
    return MethodContext(
        config=config,
        world=world,
        student=nothing,
        teacher=None,
        sampler=sampler,
        loader=nothing,
        batcher=GlobalBatcher(micro_batch=2, inference_batch_tokens=None, pad_id=0, world=world),
        vocabulary=nothing,
        recorder=Recorder(world.device),
        run_dir=Path(config.run.dir),
        say=print,
    )
