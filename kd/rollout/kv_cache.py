"""A key-value cache with preallocated buffers."""

from functools import partial
from typing import Any, cast

from torch import LongTensor, Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from kd.errors import UserError

_REPLACED = (DynamicLayer, DynamicSlidingWindowLayer)


class PreallocatedLayer(DynamicLayer):
    """One layer's cache [B, heads, slots, head size] in a buffer of fixed size.

    transformers' DynamicLayer copies all keys and values for every new token; its StaticLayer attends over all
    allocated slots. This one writes new slots in place and returns a view of the filled ones, or of a fixed number of
    slots, see `PreallocatedCache.fix_shape`.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_slots = num_slots
        self._num_visible = 0
        self._next_slot: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers in the shapes of the first keys and values."""
        super().lazy_initialization(key_states, value_states)
        # Zeros: attention multiplies masked slots by 0, and memory that was never written may hold NaN.
        self._key_buffer, self._value_buffer = (
            states.new_zeros((*states.shape[:-2], self._num_slots, states.shape[-1]))
            for states in (key_states, value_states)
        )

    def fix_shape(self, next_slot: Tensor, *, num_visible: int) -> None:
        """See `PreallocatedCache.fix_shape`."""
        self._next_slot = next_slot
        # transformers then neither reads the mask nor the number of slots on the host.
        self.is_compileable = True
        self._view(num_visible)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, new slots, head size]; returns keys and values of all visible slots."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._next_slot is not None:
            self._key_buffer.index_copy_(2, self._next_slot, key_states)
            self._value_buffer.index_copy_(2, self._next_slot, value_states)
            return self.keys, self.values
        start, end = self._num_visible, self._num_visible + key_states.shape[-2]
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        return self._view(end)

    def get_seq_length(self) -> Any:
        """Slots so far; on the device once the shape is fixed, as transformers' StaticLayer has it."""
        return self._num_visible if self._next_slot is None else self._next_slot

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The number of slots that attention sees, and the first of them."""
        return self._num_visible if self._next_slot is not None else self._num_visible + query_length, 0

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch, which may name a row several times."""
        self._key_buffer = self._key_buffer.index_select(0, indices)
        self._value_buffer = self._value_buffer.index_select(0, indices)
        self._view(self._num_visible)

    def _view(self, num_visible: int) -> tuple[Tensor, Tensor]:
        self._num_visible = num_visible
        self.keys: Tensor = self._key_buffer[:, :, :num_visible]
        self.values: Tensor = self._value_buffer[:, :, :num_visible]
        return self.keys, self.values


_KEYS_AND_VALUES = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers that cache keys and values, and nothing else."""


def keeps_states(config: PretrainedConfig) -> bool:
    """Whether layers of the model keep more than keys and values: state-space, recurrent and hybrid families."""
    kinds = getattr(config.get_text_config(), "layer_types", None) or []
    return not set(kinds) <= _KEYS_AND_VALUES


class PreallocatedCache(Cache):
    """The cache of a model: `PreallocatedLayer` for keys and values, transformers' own layers for other states."""

    def __init__(self, num_slots: int, *, config: PretrainedConfig) -> None:
        """Allocate `num_slots` slots in each row, prompt and padding included."""
        self._keeps_states = keeps_states(config)
        if not self._keeps_states:
            # A layer is added when the model first uses it.
            super().__init__(layer_class_to_replicate=partial(PreallocatedLayer, num_slots))  # type: ignore[arg-type]
            return
        own = DynamicCache(config=config).layers
        super().__init__([PreallocatedLayer(num_slots) if type(layer) in _REPLACED else layer for layer in own])

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch, which may name a row several times."""
        for layer in self.layers:
            if isinstance(layer, PreallocatedLayer):
                layer.batch_select_indices(indices)
            else:
                layer.reorder_cache(cast(LongTensor, indices))

    def fix_shape(self, next_slot: Tensor, *, num_visible: int) -> None:
        """From now on one slot is added in each forward pass, at a place that only the device knows.

        Args:
            next_slot: [1], where the next keys and values go.
            num_visible: attention sees these first slots, of which the causal mask hides those after `next_slot`.

        Raises:
            UserError: layers keep states.
        """
        if self._keeps_states:
            raise UserError(
                "generation.cuda_graphs=true: the model's layers keep states beside keys and values, which is not"
                " supported; set it to false"
            )
        for layer in self.layers:
            cast(PreallocatedLayer, layer).fix_shape(next_slot, num_visible=num_visible)
