"""Bytes that the collective operations of a step move.

torch's CommDebugMode counts calls, not bytes; DeepSpeed's communication logger waits after every operation and sees
only calls that go through deepspeed.comm.
"""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CollectiveBytes(TorchDispatchMode):
    """Adds up the bytes of this rank's collective operations by kind while it is active, on any backend.

    An all-gather counts its whole result, a reduce-scatter its whole input, an all-reduce its tensor twice, as both
    of its halves do.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = {"gathered": 0, "reduced": 0, "other": 0}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self._count(func.__name__.removeprefix("_"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        # A gather has its result before its input, a scatter its input after its result: the larger one counts.
        largest = max(
            (sum(leaf.nbytes for leaf in tree_leaves(arg) if isinstance(leaf, Tensor)) for arg in args), default=0
        )
        if name.startswith(("all_gather", "allgather")):
            self.num_bytes["gathered"] += largest
        elif name.startswith("reduce_scatter"):
            self.num_bytes["reduced"] += largest
        elif name.startswith(("all_reduce", "allreduce")):
            self.num_bytes["reduced"] += 2 * largest
        elif "barrier" not in name:
            self.num_bytes["other"] += largest
