"""A copy of the ZeRO-3 student for inference: a full one on each rank, or one divided over a process group."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from kd.distributed import ProcessGroup
from kd.models.causal_lm import CausalLM
from kd.models.lora import PlainParameter, plain_parameters
from kd.rollout.tensor_parallel import split_dimensions, split_layers
from kd.zero.residency import full_shape, gathered

GATHER_BYTES = 24 * 2**20
"""Size of the parameters that are gathered together while a copy is refreshed; their buffer takes as much again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """This rank's part of one parameter."""

    source: PlainParameter
    target: nn.Parameter
    shape: Sequence[int]
    dimension: int | None
    """Dimension along which the parameter divides; None for an undivided one."""
    group_rank: int

    @property
    def gathered_bytes(self) -> int:
        """Bytes that are gathered on this rank while the part is filled."""
        return sum(full_shape(source).numel() * source.element_size() for source in self.source.sources)

    def allocate(self) -> None:
        if self.target.numel() != math.prod(self.shape):
            self.target.data = self.target.data.new_empty(self.shape)

    def fill(self) -> None:
        """Copy from the source, whose parameters are gathered."""
        value = self.source.value()
        if self.dimension is not None:
            size = self.shape[self.dimension]
            value = value.narrow(self.dimension, self.group_rank * size, size)
        self.target.copy_(value)

    def free(self) -> None:
        self.target.data = self.target.data.new_empty(0)


class InferenceCopy:
    """A plain copy of the ZeRO-3 student with merged adapters, refreshed a few parameters at a time.

    It is built without storage; then each rank allocates all of it, or with a group its part of the split layers.
    Beyond that, a rank never holds more than `GATHER_BYTES` or one larger parameter. All ranks of the world must
    refresh together; those of a group must decode together.
    """

    is_collective = False

    def __init__(
        self, source: PreTrainedModel, *, keep: bool, device: torch.device, group: ProcessGroup | None = None
    ) -> None:
        """Describe the copy, and allocate it if `keep` holds it between steps.

        Raises:
            UnsplittableError: the model does not divide over the ranks of `group`.
        """
        self.group = group
        self.source = source
        self._keep = keep
        copy = blank_copy(source)
        dimensions = {} if group is None else split_dimensions(copy, num_ranks=group.size)
        if group is not None:
            split_layers(copy, group=group)
        self._parts = self._replace_parameters(copy, dimensions=dimensions, device=device)
        for name, _ in list(copy.named_buffers()):
            owner, _, leaf = name.rpartition(".")
            storage = torch.empty_like(source.get_buffer(name), device=device)
            copy.get_submodule(owner).register_buffer(leaf, storage, persistent=False)
        self.view = CausalLM.of(copy.eval())
        if keep:
            self._allocate()

    def _replace_parameters(
        self, copy: PreTrainedModel, *, dimensions: dict[str, int], device: torch.device
    ) -> list[_Part]:
        """Give `copy` empty parameters; shared ones of the source, such as a tied head, are shared here too."""
        num_ranks, group_rank = (1, 0) if self.group is None else (self.group.size, self.group.group_rank)
        parts: dict[nn.Parameter, _Part] = {}
        for plain in plain_parameters(self.source, remove_duplicate=False):
            if plain.base not in parts:
                shape, dimension = list(full_shape(plain.base)), dimensions.get(plain.name)
                if dimension is not None:
                    shape[dimension] //= num_ranks
                empty = torch.empty(0, dtype=plain.base.dtype, device=device)
                target = nn.Parameter(empty, requires_grad=False)
                parts[plain.base] = _Part(
                    source=plain, target=target, shape=shape, dimension=dimension, group_rank=group_rank
                )
            owner, _, leaf = plain.name.rpartition(".")
            copy.get_submodule(owner).register_parameter(leaf, parts[plain.base].target)
        return list(parts.values())

    @contextmanager
    def ready(self) -> Iterator[CausalLM]:
        """The copy with the student's current weights; the next refresh repairs an interrupted one."""
        try:
            self._allocate()
            with torch.no_grad():
                self._refresh()
                yield self.view
        finally:
            if not self._keep:
                for part in self._parts:
                    part.free()

    @property
    def held_bytes(self) -> int:
        """Bytes of parameters that this rank holds."""
        return sum(part.target.untyped_storage().nbytes() for part in self._parts)

    def _allocate(self) -> None:
        for part in self._parts:
            part.allocate()

    def _refresh(self) -> None:
        for parts in _groups(self._parts, byte_budget=GATHER_BYTES):
            sources = [parameter for part in parts for parameter in part.source.sources]
            with gathered(sources):
                for part in parts:
                    part.fill()
        # By name: some families replace their buffers.
        for name, buffer in self.view.model.named_buffers():
            buffer.copy_(self.source.get_buffer(name))


def blank_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same published architecture, without adapters and without storage."""
    with torch.device("meta"):
        copy: PreTrainedModel = type(model)(model.config)
    return copy.to(model.dtype)  # type: ignore[arg-type, no-any-return]


def copy_bytes(blank: PreTrainedModel, *, num_ranks: int = 1) -> int:
    """Bytes of parameters that each of `num_ranks` ranks keeps of a decoding copy; `blank` needs no storage.

    Raises:
        UnsplittableError: the model does not divide over so many ranks.
    """
    divided = {} if num_ranks == 1 else split_dimensions(blank, num_ranks=num_ranks)
    return sum(
        parameter.numel() * parameter.element_size() // (num_ranks if name in divided else 1)
        for name, parameter in blank.named_parameters()
    )


def _groups(parts: Sequence[_Part], *, byte_budget: int) -> Iterator[list[_Part]]:
    """Consecutive parts that gather at most `byte_budget` together, or a single larger one."""
    group: list[_Part] = []
    size = 0
    for part in parts:
        if group and size + part.gathered_bytes > byte_budget:
            yield group
            group, size = [], 0
        group.append(part)
        size += part.gathered_bytes
    yield group
