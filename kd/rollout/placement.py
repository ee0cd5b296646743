"""Where the student's weights are while it is sampled: in place, in whole copies, in divided copies, or in shards."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from transformers import PreTrainedModel

from kd.config.schema import GenerationConfig
from kd.distributed import RankGroup, World
from kd.errors import UserError
from kd.models.causal_lm import CausalLM
from kd.rollout.inference_copy import InferenceCopy, blank_copy, copy_bytes
from kd.rollout.tensor_parallel import UnsplittableError
from kd.zero.memory import gib, scarcest_bytes


@runtime_checkable
class Placement(Protocol):
    """A layout of the student's weights for decoding."""

    @property
    def is_collective(self) -> bool:
        """Whether a forward pass is a collective operation that all ranks must run together."""
        ...

    @property
    def group(self) -> RankGroup | None:
        """Ranks whose forward passes are one collective operation: they must decode the same rows together."""
        ...

    def ready(self) -> AbstractContextManager[CausalLM]:
        """The model with the weights of this moment, for decoding inside the context."""
        ...


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Let the model use its cache, which transformers refuses a training model with checkpointing."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@dataclass(frozen=True, kw_only=True)
class InPlaceWeights:
    """The trained module itself: whole under ZeRO-0, 1, 2; gathered at once, or by ZeRO-3's hooks layer by layer."""

    view: CausalLM
    is_collective: bool
    gather: Callable[[], None]
    """Makes a sharded model whole that no hooks gather; who asks for it must release the model too."""
    group: None = None

    @classmethod
    def of(cls, model: "InPlaceModel") -> "InPlaceWeights":
        """Those of a model as it is."""
        return cls(view=model.view, is_collective=model.is_collective, gather=model.gather)

    @contextmanager
    def ready(self) -> Iterator[CausalLM]:
        self.gather()
        with evaluation_mode(self.view.model):
            yield self.view


class InPlaceModel(Protocol):
    """A model that can be rolled out: the student, or the teacher."""

    @property
    def view(self) -> CausalLM: ...

    @property
    def zero_stage(self) -> int: ...

    @property
    def is_collective(self) -> bool: ...

    def gather(self) -> None: ...


def choose_placement(
    sampled: InPlaceModel, *, settings: GenerationConfig, world: World, role: str = "student"
) -> tuple[Placement, str]:
    """The decoding layout, and one sentence that says which and why; all ranks call it together.

    Raises:
        UserError: tensor_parallel is asked for and the ranks of the hosts do not divide into such groups, or neither
            the model divides nor a whole copy of it fits.
    """
    if sampled.zero_stage < 3:
        return InPlaceWeights.of(sampled), (
            f"sampling with the {role}'s own weights, whole on each rank under ZeRO-{sampled.zero_stage}"
        )
    hosts = world.hosts()
    free_bytes = scarcest_bytes(world, hosts=hosts)
    choice = choose_layout(blank_copy(sampled.view.model), settings=settings, free_bytes=free_bytes, hosts=hosts)
    if choice.layout == "zero3":
        where = "ZeRO-3 shards" if sampled.is_collective else f"the {role}'s own weights, gathered for the window"
        return InPlaceWeights.of(sampled), f"sampling from {where} ({choice.reason})"
    group = None
    if choice.layout == "tensor_parallel":
        group = world.join_group(_cut(hosts, size=choice.num_ranks))
    copy = InferenceCopy(sampled.view.model, keep=settings.keep_weights, device=world.device, group=group)
    whole = f"a whole copy of the {role} on each rank"
    divided = f"copies of the {role} that {choice.num_ranks} ranks share"
    return copy, f"sampling from {whole if group is None else divided} ({choice.reason})"


@dataclass(frozen=True, kw_only=True)
class LayoutChoice:
    """A layout that the model and the memory allow."""

    layout: Literal["gathered", "tensor_parallel", "zero3"]
    num_ranks: int = 1
    """Ranks that share a copy."""
    reason: str


def choose_layout(
    blank: PreTrainedModel, *, settings: GenerationConfig, free_bytes: int, hosts: list[list[int]]
) -> LayoutChoice:
    """The layout for a ZeRO-3 student.

    Args:
        blank: a model of the student's shapes; needs no storage.
        free_bytes: memory for this model's copy on each rank.
        hosts: the ranks of each host; a copy is shared inside one host.

    Raises:
        UserError: as `choose_placement`.
    """
    if settings.layout == "auto":
        return _choose_by_memory(blank, settings=settings, free_bytes=free_bytes, hosts=hosts)
    if settings.layout == "tensor_parallel":
        return _choose_to_divide(blank, num_ranks=settings.tensor_parallel_size, free_bytes=free_bytes, hosts=hosts)
    return LayoutChoice(layout=settings.layout, reason="as generation.layout asks")


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
        whole, refusal = copy_bytes(blank), f"the model cannot be divided over {num_ranks} ranks: {error}"
        if not _fits(whole, free_bytes):
            raise UserError(
                f"generation.layout=tensor_parallel: {refusal}; and a whole copy does not fit: it takes {gib(whole)},"
                f" {_free(free_bytes)}; use generation.layout=zero3"
            ) from None
        return LayoutChoice(layout="gathered", reason=refusal)
    reason = f"as generation.layout asks; {gib(share)} on each rank"
    return LayoutChoice(layout="tensor_parallel", num_ranks=num_ranks, reason=reason)


def _choose_by_memory(
    blank: PreTrainedModel, *, settings: GenerationConfig, free_bytes: int, hosts: list[list[int]]
) -> LayoutChoice:
    """The whole copy, else the smallest groups whose shares fit, else shards."""
    whole = copy_bytes(blank)
    reason = f"a whole copy takes {gib(whole)}"
    if _fits(whole, free_bytes):
        return LayoutChoice(layout="gathered", reason=f"{reason}; {_free(free_bytes)}")
    sizes = _group_sizes(hosts)
    if settings.tensor_parallel_size > 1:
        sizes = [size for size in sizes if size == settings.tensor_parallel_size]
    refusal = "the ranks of each host do not divide into groups"
    for size in sizes:
        try:
            share = copy_bytes(blank, num_ranks=size)
        except UnsplittableError as error:
            refusal = f"it cannot be divided over {size} ranks: {error}"
            continue
        refusal = f"a share of {size} ranks {gib(share)}"
        if _fits(share, free_bytes):
            return LayoutChoice(
                layout="tensor_parallel", num_ranks=size, reason=f"{reason}, {refusal}; {_free(free_bytes)}"
            )
    return LayoutChoice(layout="zero3", reason=f"{reason}, {refusal}; {_free(free_bytes)}")


def _group_sizes(hosts: list[list[int]]) -> list[int]:
    """Numbers of ranks, from 2, that divide those of every host."""
    divisor = math.gcd(*(len(ranks) for ranks in hosts))
    return [size for size in range(2, divisor + 1) if divisor % size == 0]


def _fits(nbytes: int, free_bytes: int) -> bool:
    return nbytes <= free_bytes // 2


def _free(free_bytes: int) -> str:
    # What is free is measured before the first step.
    return f"{gib(free_bytes)} are free on each rank, half of them for the activations to come"


def _cut(hosts: list[list[int]], *, size: int) -> list[list[int]]:
    """Consecutive ranks of each host in groups of `size`."""
    return [ranks[start : start + size] for ranks in hosts for start in range(0, len(ranks), size)]
