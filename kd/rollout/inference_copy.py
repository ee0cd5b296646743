"""A copy of the ZeRO-3 student to decode with: whole on each rank, or in parts on the ranks of a group."""

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
"""Parameters gathered together while a copy is refreshed: few waits, never the whole model.

Gathering takes up to twice their bytes: once where they arrive and once where they are put together.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """What this rank keeps of one parameter."""

    source: PlainParameter
    target: nn.Parameter
    dimension: int | None
    """Where the parameter divides; None keeps it whole."""
    num_ranks: int
    group_rank: int

    @property
    def shape(self) -> list[int]:
        return _part_shape(full_shape(self.source.base), dimension=self.dimension, num_ranks=self.num_ranks)

    @property
    def gathered_bytes(self) -> int:
        """Bytes of what is whole on this rank while the part is filled."""
        return sum(full_shape(source).numel() * source.element_size() for source in self.source.sources)

    def allocate(self) -> None:
        if self.target.numel() != math.prod(self.shape):
            self.target.data = self.target.data.new_empty(self.shape)

    def fill(self) -> None:
        """Copy from the source, whose parameters are whole at the moment."""
        whole = self.source.value()
        self.target.copy_(
            whole if self.dimension is None else whole.chunk(self.num_ranks, self.dimension)[self.group_rank]
        )

    def free(self) -> None:
        self.target.data = self.target.data.new_empty(0)


class InferenceCopy:
    """A plain copy of the ZeRO-3 student, adapters merged, refreshed in place a few parameters at a time.

    It is built without any storage; then each rank allocates what it keeps: all of it, or with a group its part of
    the split layers. Of what it does not keep, a rank never holds more than `GATHER_BYTES` or one larger parameter.
    All ranks of the world must refresh together; those of a group must decode together.
    """

    is_collective = False

    def __init__(
        self, source: PreTrainedModel, *, keep: bool, device: torch.device, group: ProcessGroup | None = None
    ) -> None:
        """Describe the copy, and make room for it if `keep` holds it between windows.

        Raises:
            UnsplittableError: the model does not divide over the ranks of `group`.
        """
        self.group = group
        self.source = source
        self._keep = keep
        copy = blank_copy(source)
        dimensions: dict[str, int] = {}
        if group is not None:
            dimensions = split_dimensions(copy, num_ranks=group.size)
            split_layers(copy, group=group)
        self._parts = _replace_parameters(copy, source, dimensions=dimensions, group=group, device=device)
        _replace_buffers(copy, source, device=device)
        self.view = CausalLM.of(copy.eval())
        if keep:
            self._allocate()

    @contextmanager
    def ready(self) -> Iterator[CausalLM]:
        """The copy with the student's weights of this moment; an interrupted refresh is made good by the next."""
        try:
            self._allocate()
            self._refresh()
            with torch.no_grad():
                yield self.view
        finally:
            if not self._keep:
                for part in self._parts:
                    part.free()

    @property
    def held_bytes(self) -> int:
        """Bytes of parameters that this rank holds at the moment."""
        return sum(part.target.untyped_storage().nbytes() for part in self._parts)

    def _allocate(self) -> None:
        for part in self._parts:
            part.allocate()

    def _refresh(self) -> None:
        for parts in _groups(self._parts, byte_budget=GATHER_BYTES):
            sources = [parameter for part in parts for parameter in part.source.sources]
            with gathered(sources), torch.no_grad():
                for part in parts:
                    part.fill()
        # By name: some families put new buffers in the place of old ones.
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
    dimensions = {} if num_ranks == 1 else split_dimensions(blank, num_ranks=num_ranks)
    return sum(
        math.prod(_part_shape(parameter.shape, dimension=dimensions.get(name), num_ranks=num_ranks))
        * parameter.element_size()
        for name, parameter in blank.named_parameters()
    )


def _replace_parameters(
    copy: PreTrainedModel,
    source: PreTrainedModel,
    *,
    dimensions: dict[str, int],
    group: ProcessGroup | None,
    device: torch.device,
) -> list[_Part]:
    """Give `copy` empty parameters; those that `source` uses in two places, such as a tied head, are one here too."""
    num_ranks, group_rank = (1, 0) if group is None else (group.size, group.group_rank)
    parts: dict[nn.Parameter, _Part] = {}
    for plain in plain_parameters(source, remove_duplicate=False):
        if plain.base not in parts:
            empty = torch.empty(0, dtype=plain.base.dtype, device=device)
            parts[plain.base] = _Part(
                source=plain,
                target=nn.Parameter(empty, requires_grad=False),
                dimension=dimensions.get(plain.name),
                num_ranks=num_ranks,
                group_rank=group_rank,
            )
        owner, _, leaf = plain.name.rpartition(".")
        copy.get_submodule(owner).register_parameter(leaf, parts[plain.base].target)
    return list(parts.values())


def _replace_buffers(copy: PreTrainedModel, source: PreTrainedModel, *, device: torch.device) -> None:
    """Give `copy` buffers with storage, to be filled at each refresh."""
    for name, _ in list(copy.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        storage = torch.empty_like(source.get_buffer(name), device=device)
        copy.get_submodule(owner).register_buffer(leaf, storage, persistent=False)


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


def _part_shape(shape: torch.Size, *, dimension: int | None, num_ranks: int) -> list[int]:
    """Shape of a rank's part of a parameter."""
    return [size // num_ranks if place == dimension else size for place, size in enumerate(shape)]
