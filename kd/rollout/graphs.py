"""CUDA graphs: the work for one token, captured once and repeated without the host's launches."""

from collections.abc import Callable, Hashable

import torch

from kd.errors import LoneUserError
from kd.zero.memory import is_out_of_memory

Work = Callable[[], None]
Capture = Callable[[Work], Work]
"""From work on fixed buffers to a call that repeats it."""


def cuda_graph(work: Work) -> Work:
    """Capture the kernels that `work` launches on the current GPU; nothing runs before the graph is called.

    Raises:
        LoneUserError: the work waits for the GPU, or copies from the host.
    """
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise LoneUserError(
            "generation.cuda_graphs=true: the work for one token cannot be captured"
            f" ({' '.join(str(error).split())[:200]}); set generation.cuda_graphs=false"
        ) from None
    return graph.replay


class RepeatedWork:
    """Work that is captured when its shapes are new, and repeated while they last."""

    def __init__(self, work: Work, *, capture: Capture | None) -> None:
        """Describe the work; without `capture` it runs each time."""
        self._work = work
        self._capture = capture
        self._shape: Hashable = None
        self._repeat: Work | None = None

    def __call__(self, shape: Hashable) -> None:
        """Do the work; `shape` names the shapes and buffers that it uses now."""
        if self._repeat is not None and shape == self._shape:
            self._repeat()
            return
        # The old graph's memory is free before a new one takes its own.
        self._repeat = None
        # Libraries set themselves up at their first call, which cannot be captured.
        self._work()
        if self._capture is not None:
            self._shape, self._repeat = shape, self._capture(self._work)
