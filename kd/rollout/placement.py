"""Where the student's weights are during rollouts: in place, in a full copy on each rank, or in a divided copy."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel

from kd.config.schema import GenerationConfig
from kd.distributed import ProcessGroup, World
from kd.errors import UserError
from kd.models.causal_lm import CausalLM
from kd.models.handle import ModelHandle
from kd.models.lora import adapter_parameters
from kd.rollout.inference_copy import InferenceCopy, blank_copy, copy_bytes
from kd.rollout.tensor_parallel import UnsplittableError
from kd.zero.memory import gib, leaves_room, scarcest_bytes


@runtime_checkable
class Placement(Protocol):
    """The weights of a model for decoding."""

    @property
    def is_collective(self) -> bool:
        """Whether a forward pass is a collective operation of all ranks."""

    @property
    def group(self) -> ProcessGroup | None:
        """Ranks whose forward passes are one collective operation: they decode the same rows together."""

    def ready(self) -> AbstractContextManager[CausalLM]:
        """The model with its current weights, for decoding inside the context."""


class InPlaceWeights:
    """The trained module itself: resident under ZeRO-0, 1 and 2; gathered once, or layer by layer, under ZeRO-3."""

    group = None

    def __init__(self, model: ModelHandle) -> None:
        self._model = model
        self.is_collective = model.engine.is_collective

    @contextmanager
    def ready(self) -> Iterator[CausalLM]:
        self._model.engine.gather()
        module = self._model.view.model
        was_training = module.training
        # transformers refuses its cache to a model in training mode with checkpointing.
        module.eval()
        try:
            with torch.no_grad():
                yield self._model.view
        finally:
            module.train(was_training)


def choose_placement(
    model: ModelHandle, *, settings: GenerationConfig, world: World, reserved_bytes: int, role: str = "student"
) -> tuple[Placement, str]:
    """The placement of a model's weights, and a sentence with its reason; all ranks call it together.

    `reserved_bytes` of what looks free on each rank are for other things: `Engine.reserved_bytes` of all engines.

    Raises:
        UserError: the ranks of the hosts do not divide into groups of generation.tensor_parallel_size, or the model
            cannot be divided and a full copy does not fit.
    """
    if model.zero_stage < 3:
        return InPlaceWeights(model), f"rollouts: the {role}'s weights in place, resident under ZeRO-{model.zero_stage}"
    if settings.layout == "auto" and model.engine.gathers_once and not adapter_parameters(model.model):
        # A copy would take as much memory again; only one with merged adapters is worth it.
        return InPlaceWeights(model), f"rollouts: the {role}'s weights in place, gathered once for each global batch"
    hosts = world.hosts()
    # The first rollout will allocate it.
    kv_cache = settings.max_batch_tokens * cache_bytes_per_token(model.view.model)
    free_bytes = scarcest_bytes(world, hosts=hosts) - reserved_bytes - kv_cache
    choice = choose_layout(blank_copy(model.view.model), settings=settings, free_bytes=free_bytes, hosts=hosts)
    if choice.layout == "zero3":
        how = "layer by layer" if model.engine.is_collective else "once for each global batch"
        return InPlaceWeights(model), f"rollouts: the {role}'s weights in place, gathered {how} ({choice.reason})"
    group = None
    if choice.layout == "tensor_parallel":
        size = choice.num_ranks
        # Consecutive ranks of each host.
        groups = [ranks[start : start + size] for ranks in hosts for start in range(0, len(ranks), size)]
        group = world.new_process_group(groups)
    copy = InferenceCopy(model.view.model, keep=settings.keep_weights, device=world.device, group=group)
    where = "each rank" if group is None else f"each group of {choice.num_ranks} ranks"
    return copy, f"rollouts: a copy of the {role} on {where} ({choice.reason})"


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A layout that model and memory allow."""

    layout: Literal["gathered", "tensor_parallel", "zero3"]
    num_ranks: int = 1
    """Ranks that share one copy."""
    reason: str


def choose_layout(
    blank: PreTrainedModel, *, settings: GenerationConfig, free_bytes: int, hosts: list[list[int]]
) -> LayoutChoice:
    """The layout for a ZeRO-3 student, of which `blank` has the shapes and no storage.

    `free_bytes` is the free memory of each rank. `hosts` has the ranks of each host; a copy is shared within a host.

    Raises:
        UserError: as `choose_placement`.
    """
    if settings.layout == "auto":
        return _choose_by_memory(blank, settings=settings, free_bytes=free_bytes, hosts=hosts)
    if settings.layout == "tensor_parallel":
        return _choose_to_divide(blank, num_ranks=settings.tensor_parallel_size, free_bytes=free_bytes, hosts=hosts)
    return LayoutChoice(layout=settings.layout, reason=f"generation.layout={settings.layout}")


def _choose_to_divide(
    blank: PreTrainedModel, *, num_ranks: int, free_bytes: int, hosts: list[list[int]]
) -> LayoutChoice:
    if any(len(ranks) % num_ranks for ranks in hosts):
        counts = ", ".join(str(len(ranks)) for ranks in hosts)
        raise UserError(
            f"generation.tensor_parallel_size={num_ranks} does not divide the number of ranks of each host ({counts});"
            " give one that does, or another generation.layout"
        )
    try:
        share = copy_bytes(blank, num_ranks=num_ranks)
    except UnsplittableError as error:
        full, refusal = copy_bytes(blank), f"the model cannot be divided over {num_ranks} ranks: {error}"
        if not leaves_room(full, free_bytes=free_bytes):
            raise UserError(
                f"generation.layout=tensor_parallel: {refusal}; and a full copy of {gib(full)} does not fit"
                f" ({_free(free_bytes)}); use generation.layout=zero3"
            ) from None
        return LayoutChoice(layout="gathered", reason=refusal)
    reason = f"generation.layout=tensor_parallel; {gib(share)} per rank"
    return LayoutChoice(layout="tensor_parallel", num_ranks=num_ranks, reason=reason)


def _choose_by_memory(
    blank: PreTrainedModel, *, settings: GenerationConfig, free_bytes: int, hosts: list[list[int]]
) -> LayoutChoice:
    """The full copy, else the smallest groups whose shares fit, else the partitioned weights in place."""
    full = copy_bytes(blank)
    reason = f"a full copy takes {gib(full)}"
    if leaves_room(full, free_bytes=free_bytes):
        return LayoutChoice(layout="gathered", reason=f"{reason}; {_free(free_bytes)}")
    common_divisor = math.gcd(*(len(ranks) for ranks in hosts))
    refusal = "the ranks of each host do not divide into groups"
    for size in range(2, common_divisor + 1):
        if common_divisor % size or settings.tensor_parallel_size not in (1, size):
            continue
        try:
            share = copy_bytes(blank, num_ranks=size)
        except UnsplittableError as error:
            refusal = f"it cannot be divided over {size} ranks: {error}"
            continue
        refusal = f"a share of {size} ranks {gib(share)}"
        if leaves_room(share, free_bytes=free_bytes):
            return LayoutChoice(
                layout="tensor_parallel", num_ranks=size, reason=f"{reason}, {refusal}; {_free(free_bytes)}"
            )
    return LayoutChoice(layout="zero3", reason=f"{reason}, {refusal}; {_free(free_bytes)}")


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Bytes of keys and values of one token; 0 for models without attention heads in their configuration."""
    config: Any = model.config.get_text_config()
    num_heads = getattr(config, "num_attention_heads", 0)
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_size = getattr(config, "head_dim", None) or (config.hidden_size // num_heads if num_heads else 0)
    return 2 * int(config.num_hidden_layers * num_kv_heads * head_size * model.dtype.itemsize)


def _free(free_bytes: int) -> str:
    # Half of it is reserved for activations.
    return (
        f"{gib(max(0, free_bytes))} free per rank beside optimizer state, gathered models and KV cache, half of it"
        " reserved for activations"
    )
