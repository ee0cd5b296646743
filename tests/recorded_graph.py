"""A CUDA graph in Python: operations are recorded once and repeated on the same tensors, without the code around them.

As in a capture, nothing may come from the host or go to it, and whatever is a Python number stays what it was.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd.rollout.graphs import Work

_aten = torch.ops.aten
_FORBIDDEN = {_aten._local_scalar_dense, _aten.nonzero, _aten.equal, _aten.masked_select, _aten.lift_fresh}


class Recorder(TorchDispatchMode):
    """Records all operations while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _FORBIDDEN:
            raise RuntimeError(f"{func} while a graph is captured")
        results = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, results))
        return results


class RecordedGraphs:
    """Makes graphs and counts their use."""

    def __init__(self) -> None:
        self.num_captures = 0
        self.num_replays = 0

    def capture(self, work: Work) -> Work:
        """As `kd.rollout.graphs.cuda_graph`, but the work runs while it is recorded; the first call does nothing."""
        self.num_captures += 1
        with Recorder() as recorder:
            work()
        done = [False]

        def replay() -> None:
            self.num_replays += 1
            if done[0]:
                for operation in recorder.operations:
                    _repeat(*operation)
            done[0] = True

        return replay


def _repeat(func: Any, args: Any, kwargs: Any, results: Any) -> None:
    if any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns):
        return  # A view's values are those of its base.
    repeated = func(*args, **kwargs)
    if not func._schema.is_mutable:
        for old, new in zip(tree_leaves(results), tree_leaves(repeated), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)
