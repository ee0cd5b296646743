"""A device that exists in Python only: real numbers in host memory, an error where devices mix, counted operations.

It stands for a GPU in tests: what it counts as launches would be kernels, and what it counts as waits would make the
host wait for the device. It knows neither streams nor communication.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_NAME = "pretend"


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(_NAME, backend_module=_Backend())
DEVICE = torch.device(_NAME, 0)

_aten = torch.ops.aten
# Shapes and strides only, without work for a device.
_VIEWS = {
    *(_aten.view, _aten._unsafe_view, _aten.t, _aten.transpose, _aten.permute, _aten.expand, _aten.slice, _aten.select),
    *(_aten.unsqueeze, _aten.squeeze, _aten.alias, _aten.detach, _aten.as_strided, _aten.split, _aten.unbind),
    *(_aten.split_with_sizes, _aten.view_as, _aten.empty, _aten.empty_like, _aten.new_empty, _aten.narrow),
    *(_aten.empty_strided, _aten.new_empty_strided, _aten._reshape_alias, _aten.diagonal, _aten.lift_fresh),
}
# The host reads a value, or needs the number of results.
_READS = {
    _aten._local_scalar_dense,
    _aten.nonzero,
    _aten.equal,
    _aten.is_nonzero,
    _aten.masked_select,
    _aten.unique_dim,
}


class PretendTensor(Tensor):
    """A tensor on the pretend device; `host` has its values."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, *, requires_grad: bool = False) -> "PretendTensor":
        made: PretendTensor = Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.host = host
        return made

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"pretend({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the pretend device outside of its context")


class PretendDevice(TorchDispatchMode):
    """Runs operations on the pretend device while it is active, and counts them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_launches = 0
        self.num_waits = 0
        """Reads by the host."""
        self.num_uploads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        pretends = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        target = kwargs.get("device")
        to_device = target is not None and torch.device(target).type == _NAME
        if not pretends and not to_device:
            return func(*args, **kwargs)
        packet = func.overloadpacket
        is_copy = packet in (_aten._to_copy, _aten.copy_)
        if not is_copy and any(not isinstance(tensor, PretendTensor) and tensor.dim() for tensor in tensors):
            raise RuntimeError(f"{func}: tensors of the pretend device and of the host")
        if is_copy and len(pretends) < len(tensors):
            # A copy's first tensor is its target, a conversion's only one its source.
            goes_up = isinstance(tensors[0], PretendTensor) or to_device
            self.num_uploads += goes_up
            self.num_waits += not goes_up
        elif packet in _READS or (is_copy and target is not None and not to_device):
            self.num_waits += 1
        elif packet not in _VIEWS:
            self.num_launches += 1
        if target is not None:
            kwargs["device"] = "cpu"
        if packet is _aten._fused_sdp_choice:
            # The plain formula, whose operations exist on every device.
            return 0
        results = func(*_hosts(args), **_hosts(kwargs))
        if func._schema.is_mutable:
            return _mutated(func, args, kwargs, results)
        if target is not None and not to_device:
            return results
        return tree_map(lambda leaf: PretendTensor(leaf) if isinstance(leaf, Tensor) else leaf, results)


def _hosts(values: Any) -> Any:
    return tree_map(lambda leaf: leaf.host if isinstance(leaf, PretendTensor) else leaf, values)


def _mutated(func: Any, args: Any, kwargs: Any, results: Any) -> Any:
    """What an operation in place returns: the tensors that it was given."""
    written = [
        args[index] if index < len(args) else kwargs[argument.name]
        for index, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if not isinstance(results, tuple | list):
        return written[0] if results is not None else None
    return type(results)(written)


# torch.tensor and assignments of numbers make their tensors below every Python mode.
_LIBRARY = torch.library.Library("aten", "IMPL")


def _empty_strided(size: Any, stride: Any, **options: Any) -> Tensor:
    return PretendTensor(torch.empty_strided(size, stride, dtype=options.get("dtype")))


def _empty(size: Any, **options: Any) -> Tensor:
    return PretendTensor(torch.empty(size, dtype=options.get("dtype")))


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _hosts(target).copy_(_hosts(source))
    if _active:
        _active[-1].num_uploads += 1
    return target


_LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
_LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
_LIBRARY.impl("copy_", _copy, "PrivateUse1")
_active: list[PretendDevice] = []


@contextmanager
def pretend_device() -> Iterator[PretendDevice]:
    """The pretend device; tensors and modules reach it by `.to(DEVICE)`, and factories by `device=DEVICE`."""
    with PretendDevice() as device:
        _active.append(device)
        try:
            yield device
        finally:
            _active.pop()
