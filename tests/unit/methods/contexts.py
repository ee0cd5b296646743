"""Contexts of methods without models, for what a method does between them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kd.config.schema import Config
from kd.data.encoding import Example
from kd.data.global_batch import GlobalBatcher
from kd.data.loader import BatchLoader
from kd.distributed import World
from kd.methods.base import MethodContext
from kd.zero.recorder import Recorder


def make_context(config: Config, *, world: World, sampler: Any) -> MethodContext:
    nothing: Any = None
    # A rollout gathers the student first.
    student: Any = SimpleNamespace(engine=SimpleNamespace(gather=lambda: None))
    row = Example(
        row_id=0, prompt="", prompt_ids=np.ones(1, dtype=np.int32), response_ids=None, references=(), source="x:1"
    )
    return MethodContext(
        config=config,
        world=world,
        student=student,
        teacher=None,
        sampler=sampler,
        loader=BatchLoader([row], global_batch=world.size, rank=world.rank, num_ranks=world.size, seed=1),
        batcher=GlobalBatcher(micro_batch=2, inference_batch_tokens=None, pad_id=0, world=world),
        vocabulary=nothing,
        recorder=Recorder(world.device),
        run_dir=Path(config.run.dir),
        say=print,
    )
