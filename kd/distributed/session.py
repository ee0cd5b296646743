"""The process group of a Python process that trains or evaluates more than once."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from kd.distributed import World, end_world, start_world
from kd.errors import UserError

_world: World | None = None


@contextmanager
def joined_world() -> Iterator[World]:
    """Join the process group of this run at the first call, and stay in it until the process ends.

    DeepSpeed keeps references to the process group that it first met: a second one in the same process is an error.

    Raises:
        UserError: as `start_world`.
    """
    global _world
    # After any other error, the process must not wait at its end for ranks that are in a collective operation.
    atexit.unregister(end_world)
    try:
        if _world is None or not dist.is_initialized():
            _world = start_world()
        yield _world
    except UserError:
        atexit.register(end_world)
        raise
    atexit.register(end_world)
