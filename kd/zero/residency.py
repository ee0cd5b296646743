"""A ZeRO-3 model in one piece for the passes of a window, where memory allows.

Left to itself, DeepSpeed gathers each layer for each pass, through a buffer for several parameters and a copy out of
it, and all ranks wait for each other at every layer. Gathered at once, the parameters move once for all passes of a
window and without a copy, and an fp32 gradient is reduced once for all of its micro-batches.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn

from kd.config.schema import EngineConfig
from kd.distributed import World
from kd.zero.memory import gib, scarcest_bytes

_SHARE = 8
"""`auto` keeps a model whole where it takes at most one part in so many of the free memory."""
# DeepSpeed shards no parameter that a module is at work with; it numbers its modules from 0.
_IN_USE = -1
_SMALL = 2**17
"""Elements below which moving a parameter costs less than an operation of its own."""


class ResidentParameters:
    """The parameters of a sharded model, gathered and sharded again together; all ranks call it together."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters: list[Any] = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]

    @property
    def keeps_gradient(self) -> bool:
        """Whether the gradient of a window can stay whole in the parameters' own precision, which loses nothing."""
        return all(parameter.ds_tensor.dtype == torch.float32 for parameter in self._trained)

    @property
    def num_bytes(self) -> int:
        """Of the whole model, and of the gradient that it keeps."""
        kept = [*self._parameters, *(self._trained if self.keeps_gradient else [])]
        return sum(int(parameter.ds_numel) * int(parameter.ds_tensor.element_size()) for parameter in kept)

    @property
    def _trained(self) -> list[Any]:
        return [parameter for parameter in self._parameters if parameter.requires_grad]

    def gather(self) -> None:
        """Make every parameter whole until `shard`; nothing moves that is whole already."""
        missing = [parameter for parameter in self._parameters if _IN_USE not in parameter.ds_active_sub_modules]
        sharded = [parameter for parameter in missing if not is_whole(parameter)]
        small = [parameter for parameter in sharded if parameter.ds_numel < _SMALL]
        large = [parameter for parameter in sharded if parameter.ds_numel >= _SMALL]
        if small:
            # One operation, and a copy out of its buffer.
            small[0].all_gather_coalesced(small).wait()
        if large:
            large[0].all_gather(param_list=large)
        for parameter in missing:
            parameter.ds_active_sub_modules.add(_IN_USE)

    def shard(self, *, trained_only: bool = False) -> None:
        """Leave shards of what was gathered, or of the trained parameters, which an update is about to change."""
        kept = [
            parameter
            for parameter in self._parameters
            if _IN_USE in parameter.ds_active_sub_modules and (parameter.requires_grad or not trained_only)
        ]
        for parameter in kept:
            parameter.ds_active_sub_modules.discard(_IN_USE)
        whole = [parameter for parameter in kept if is_whole(parameter) and not parameter.ds_persist]
        if whole:
            whole[0].partition(param_list=whole, has_been_updated=False)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is gathered through an update, in which DeepSpeed leaves shards of all parameters.

        The trained ones must have been sharded before.
        """
        kept = [
            (parameter, parameter.data) for parameter in self._parameters if _IN_USE in parameter.ds_active_sub_modules
        ]
        yield
        for parameter, data in kept:
            parameter.data = data
            parameter.ds_status = ZeroParamStatus.AVAILABLE
            parameter.ds_active_sub_modules.add(_IN_USE)


def is_whole(parameter: nn.Parameter) -> bool:
    """Whether a parameter can be read as it is: gathered, or never sharded."""
    return bool(getattr(parameter, "ds_status", ZeroParamStatus.AVAILABLE) == ZeroParamStatus.AVAILABLE)


class ShardedEngine(Protocol):
    """An engine whose model may be sharded."""

    is_sharded: bool
    offloads_shards: bool
    shards: ResidentParameters

    def gather_once(self) -> None: ...


def choose_gathering(engines: Mapping[str, ShardedEngine], *, settings: EngineConfig, world: World) -> list[str]:
    """Tell the engines of sharded models whether to gather them once for a window; all ranks call it together.

    Args:
        engines: by role, such as teacher.

    Returns:
        A sentence about each sharded model: what was chosen and why.
    """
    sharded = {role: engine for role, engine in engines.items() if engine.is_sharded}
    if not sharded:
        return []
    free_bytes = scarcest_bytes(world, hosts=world.hosts())
    sentences = []
    for role, engine in sharded.items():
        fits = engine.shards.num_bytes * _SHARE <= free_bytes and not engine.offloads_shards
        how = "layer by layer"
        if settings.gather == "model" or (settings.gather == "auto" and fits):
            engine.gather_once()
            how = "once for the passes of a window"
        reason = f"as engine.gather asks; {gib(engine.shards.num_bytes)}"
        if settings.gather == "auto":
            place = "its shards are offloaded" if engine.offloads_shards else f"{gib(free_bytes)} are free on each rank"
            reason = f"it takes {gib(engine.shards.num_bytes)}; {place}"
        sentences.append(f"gathering the {role} {how} ({reason})")
    return sentences


def disable_shared_memory_extension() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives on CPUs; call it before `init_distributed`."""
    # The build takes a minute of start-up, and its lock file hangs every later run when a rank is killed meanwhile.
    # Gloo does the same without it. DeepSpeed has no public setting for this.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
