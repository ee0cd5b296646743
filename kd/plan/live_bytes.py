"""Bytes of the tensors that are alive while code runs, real or fake."""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, as torch's GPU allocator would.

    Views share their storage and count once; a kernel's workspace does not count.
    """

    def __init__(self, *, counts_inputs: bool = False) -> None:
        """With `counts_inputs`, tensors that no operation made count from their first use, such as loaded weights."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._counts_inputs = counts_inputs
        self.now = 0
        """Bytes alive that were made inside."""
        self.peak = 0
        """The largest value of `now` so far; may be set back to `now`."""
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in self._unknown((args, kwargs)):
            self._add(storage, num_bytes=storage.nbytes() if self._counts_inputs else 0)
        result = func(*args, **(kwargs or {}))
        for storage in self._unknown(result):
            self._add(storage, num_bytes=storage.nbytes())
        return result

    def _unknown(self, values: object) -> Iterator[torch.UntypedStorage]:
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                storage = leaf.untyped_storage()
                known = self._known.get(id(storage))
                if known is None or known() is not storage:
                    yield storage

    def _add(self, storage: torch.UntypedStorage, *, num_bytes: int) -> None:
        key = id(storage)

        def forget(_: object) -> None:
            self.now -= num_bytes
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)
