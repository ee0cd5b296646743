"""Where the student's weights are while it is sampled: in place, whole on each rank, or in shards."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from kd.config import GenerationConfig, LayoutName
from kd.distributed import World
from kd.engines.causal_lm import CausalLM
from kd.engines.student import Student
from kd.engines.trainable import gathered

GATHER_BYTES = 64 * 2**20
"""Parameters gathered together while a decoding copy is refreshed: few calls, never the whole model."""


class DecodingWeights(Protocol):
    """A layout of the student's weights for decoding."""

    @property
    def runs_hooks(self) -> bool:
        """Whether a forward pass is a collective operation that all ranks must run together."""
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
class TrainedWeights:
    """The trained module itself: whole under ZeRO-0, 1, 2; gathered layer by layer by ZeRO-3's hooks."""

    view: CausalLM
    runs_hooks: bool

    @contextmanager
    def ready(self) -> Iterator[CausalLM]:
        with evaluation_mode(self.view.model):
            yield self.view


class GatheredWeights:
    """A plain copy of the ZeRO-3 student on each rank, refreshed a few parameters at a time."""

    runs_hooks = False

    def __init__(self, source: PreTrainedModel, *, keep: bool, device: torch.device) -> None:
        """Make room for the copy; `keep` holds it between windows."""
        self._source = source
        self._keep = keep
        with torch.device(device):
            self._copy = type(source)._from_config(source.config, dtype=source.dtype)
        self._copy.requires_grad_(False).eval()
        self._pairs = list(zip(source.parameters(), self._copy.parameters(), strict=True))
        self._view = CausalLM.of(self._copy)

    @contextmanager
    def ready(self) -> Iterator[CausalLM]:
        try:
            self._refresh()
            with torch.no_grad():
                yield self._view
        finally:
            if not self._keep:
                for _, target in self._pairs:
                    target.data = target.data.new_empty(0)

    def _refresh(self) -> None:
        for group in _groups(self._pairs, byte_budget=GATHER_BYTES):
            with gathered([source for source, _ in group]), torch.no_grad():
                for source, target in group:
                    if target.shape != source.shape:
                        target.data = torch.empty_like(source.data)
                    target.copy_(source)
        for current, copied in zip(self._source.buffers(), self._copy.buffers(), strict=True):
            copied.copy_(current)


def choose_weights(student: Student, *, settings: GenerationConfig, world: World) -> tuple[DecodingWeights, str]:
    """The decoding layout, and one sentence that says which and why."""
    if student.zero_stage < 3:
        return TrainedWeights(view=student.view, runs_hooks=False), (
            f"sampling with the student's own weights, whole on each rank under ZeRO-{student.zero_stage}"
        )
    layout, reason = settings.layout, "as generation.layout asks"
    if layout == "auto":
        layout, reason = _layout_for_memory(student.model, world=world)
    if layout == "zero3":
        return TrainedWeights(view=student.view, runs_hooks=True), f"sampling from ZeRO-3 shards ({reason})"
    copy = GatheredWeights(student.model, keep=settings.keep_weights, device=world.device)
    return copy, f"sampling from a whole copy of the student on each rank ({reason})"


def _layout_for_memory(model: PreTrainedModel, *, world: World) -> tuple[LayoutName, str]:
    needed = sum(_num_elements(parameter) * parameter.element_size() for parameter in model.parameters())
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
    else:
        free = psutil.virtual_memory().available // world.size
    # Every rank must choose the same: the scarcest one decides. Half is left for cache and activations.
    scarcest = -int(world.max_across_ranks(torch.tensor(-free, device=world.device)).item())
    layout: LayoutName = "gathered" if needed <= scarcest // 2 else "zero3"
    return layout, f"the copy takes {needed / 2**30:.2f} GiB, {scarcest / 2**30:.2f} GiB are free on each rank"


def _groups(
    pairs: list[tuple[nn.Parameter, nn.Parameter]], *, byte_budget: int
) -> Iterator[list[tuple[nn.Parameter, nn.Parameter]]]:
    """Consecutive pairs of at most `byte_budget` together, or a single larger one."""
    group: list[tuple[nn.Parameter, nn.Parameter]] = []
    size = 0
    for pair in pairs:
        nbytes = _num_elements(pair[0]) * pair[0].element_size()
        if group and size + nbytes > byte_budget:
            yield group
            group, size = [], 0
        group.append(pair)
        size += nbytes
    yield group


def _num_elements(parameter: nn.Parameter) -> int:
    return math.prod(getattr(parameter, "ds_shape", parameter.shape))
