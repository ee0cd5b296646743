"""Where ZeRO-3 has the parameters, and every private DeepSpeed name that this project uses.

Parameters are *partitioned* over the ranks, *gathered* for some work, or *resident* in full on every rank. DeepSpeed's
hooks gather each layer for each forward and backward pass, through a buffer and a copy out of it, and all ranks wait
for each other at every layer. Where memory allows, `ResidentParameters` gathers the model once for a global batch:
the parameters move once, without a copy, and an fp32 gradient is reduced once for all micro-batches.

setup.py bounds DeepSpeed's version; `tests/unit/zero/test_residency.py` names what a new version has changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import deepspeed
import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from torch import nn
from torch.nn import functional

from kd.config.schema import EngineConfig
from kd.distributed import World
from kd.zero.memory import gib, leaves_room, scarcest_bytes

if TYPE_CHECKING:
    from kd.zero.engine import Engine

# DeepSpeed partitions no parameter that a module is active with; it numbers its modules from 0.
_IN_USE = -1
_SMALL = 2**17
"""Number of elements below which an all-gather of its own costs more than a copy out of a shared buffer."""


def is_zero3(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 manages a parameter."""
    return hasattr(parameter, "ds_id")


def is_gathered(parameter: nn.Parameter) -> bool:
    """Whether a parameter can be read as it is: gathered, or not managed by ZeRO-3."""
    return bool(getattr(parameter, "ds_status", ZeroParamStatus.AVAILABLE) == ZeroParamStatus.AVAILABLE)


def local_values(parameter: nn.Parameter) -> torch.Tensor:
    """What this rank holds of a parameter: all of it, or its partition, flat and maybe in host memory."""
    values: torch.Tensor = parameter.detach() if is_gathered(parameter) else parameter.ds_tensor.detach()  # type: ignore[attr-defined]
    return values


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter, partitioned or not; a partitioned one looks one-dimensional."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def gathered(parameters: Sequence[nn.Parameter], *, changed_by: int | None = None) -> deepspeed.zero.GatheredParameters:
    """Gathered parameters inside the context, for reading only, or with the changes of the rank `changed_by`."""
    partitioned = [parameter for parameter in parameters if not is_gathered(parameter)]
    return deepspeed.zero.GatheredParameters(partitioned, modifier_rank=changed_by, enabled=bool(partitioned))


@contextmanager
def linear_that_gathers() -> Iterator[None]:
    """DeepSpeed's `linear` in place of torch's, to train a model that its hooks gather layer by layer.

    Its backward pass gathers the weight again. With torch's own, each layer would keep what forward has gathered.
    A call costs 15 times as long with one token, so nothing else uses it.
    """
    own = functional.linear
    functional.linear = zero3_linear_wrap
    try:
        yield
    finally:
        functional.linear = own


def remove_hooks(engine: deepspeed.DeepSpeedEngine) -> None:
    """Stop an engine's hooks from gathering its parameters; the caller gathers them from now on."""
    optimizer = engine.optimizer
    # Without an optimizer, the engine has the object that gathers instead.
    getattr(optimizer, "parameter_offload", optimizer).destroy()
    # After an update DeepSpeed gathers small parameters again, the frozen ones too.
    optimizer.persistent_parameters = [p for p in optimizer.persistent_parameters if p.requires_grad]


def release_gathered(engine: deepspeed.DeepSpeedEngine) -> None:
    """Partition what an engine's hooks have gathered for a backward pass that an inference batch does not have.

    The engine's own method for it also collects garbage, which takes longer than a small model's forward pass.
    """
    engine.optimizer.empty_partition_cache()


def records_grad_norm(engine: deepspeed.DeepSpeedEngine) -> bool:
    """Whether the engine's optimizer computes the gradient's norm; plain ones (ZeRO-0 in fp32) do not."""
    return hasattr(engine.optimizer, "_global_grad_norm")


class ResidentParameters:
    """The parameters of a partitioned model, gathered and partitioned together; all ranks call it together."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters: list[Any] = [parameter for parameter in module.parameters() if is_zero3(parameter)]

    @property
    def keeps_gradient(self) -> bool:
        """Whether a global batch's gradient can accumulate in the parameters' own precision without loss."""
        return all(parameter.ds_tensor.dtype == torch.float32 for parameter in self._trained)

    @property
    def num_bytes(self) -> int:
        """Size of the gathered model, and of the gradient that it keeps."""
        kept = [*self._parameters, *(self._trained if self.keeps_gradient else [])]
        return sum(int(parameter.ds_numel) * int(parameter.ds_tensor.element_size()) for parameter in kept)

    @property
    def _trained(self) -> list[Any]:
        return [parameter for parameter in self._parameters if parameter.requires_grad]

    def gather(self) -> None:
        """Make every parameter resident until `partition`; nothing moves that is resident already."""
        missing = [parameter for parameter in self._parameters if _IN_USE not in parameter.ds_active_sub_modules]
        partitioned = [parameter for parameter in missing if not is_gathered(parameter)]
        small = [parameter for parameter in partitioned if parameter.ds_numel < _SMALL]
        large = [parameter for parameter in partitioned if parameter.ds_numel >= _SMALL]
        if small:
            # One collective, and a copy out of its buffer.
            small[0].all_gather_coalesced(small).wait()
        if large:
            large[0].all_gather(param_list=large)
        for parameter in missing:
            parameter.ds_active_sub_modules.add(_IN_USE)

    def partition(self, *, trained_only: bool = False) -> None:
        """Partition what was gathered, or only the trained parameters, which an update is about to change."""
        candidates = self._trained if trained_only else self._parameters
        kept = [parameter for parameter in candidates if _IN_USE in parameter.ds_active_sub_modules]
        for parameter in kept:
            parameter.ds_active_sub_modules.discard(_IN_USE)
        resident = [parameter for parameter in kept if is_gathered(parameter) and not parameter.ds_persist]
        if resident:
            resident[0].partition(param_list=resident, has_been_updated=False)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is resident through an update, in which DeepSpeed partitions all parameters.

        The trained ones must have been partitioned before.
        """
        kept = [(p, p.data) for p in self._parameters if _IN_USE in p.ds_active_sub_modules]
        yield
        for parameter, data in kept:
            parameter.data = data
            parameter.ds_status = ZeroParamStatus.AVAILABLE
            parameter.ds_active_sub_modules.add(_IN_USE)


def choose_gathering(engines: Mapping[str, "Engine"], *, settings: EngineConfig, world: World) -> list[str]:
    """Choose what the engines (by role, such as teacher) of partitioned models gather; all ranks call it together.

    `auto` gathers a model once where it takes at most half of the memory that the first optimizer steps and the models
    before it in `engines` leave free; the other half is for activations. Returns a sentence about each partitioned
    model: the choice and its reason.
    """
    partitioned = {role: engine for role, engine in engines.items() if engine.is_partitioned}
    if not partitioned:
        return []
    available = scarcest_bytes(world, hosts=world.hosts())
    sentences = []
    for role, engine in partitioned.items():
        free_bytes = available - sum(other.reserved_bytes for other in engines.values())
        fits = leaves_room(engine.resident.num_bytes, free_bytes=free_bytes) and not engine.offloads_parameters
        how = "layer by layer"
        if settings.gather == "model" or (settings.gather == "auto" and fits):
            engine.gather_once()
            how = "once for each global batch"
        reason = f"engine.gather={settings.gather}; {gib(engine.resident.num_bytes)}"
        if settings.gather == "auto":
            memory = "parameters are offloaded"
            if not engine.offloads_parameters:
                memory = (
                    f"{gib(max(0, free_bytes))} free per rank beside optimizer state and other gathered models, half of"
                    " it reserved for activations"
                )
            reason = f"{gib(engine.resident.num_bytes)}; {memory}"
        sentences.append(f"ZeRO-3 gathers the {role} {how} ({reason})")
    return sentences


def disable_shared_memory_extension() -> None:
    """Keep DeepSpeed from compiling its shared-memory collectives on CPUs; call it before `init_distributed`."""
    # The build takes a minute of start-up, and its lock file hangs every later run when a rank is killed meanwhile.
    # Gloo does the same without it. DeepSpeed has no public setting for this.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
