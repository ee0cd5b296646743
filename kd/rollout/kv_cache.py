"""A key-value cache with preallocated buffers."""

from functools import partial
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """One layer's cache [B, heads, slots, head size] in a buffer of fixed size.

    transformers' DynamicLayer copies all keys and values for every new token; its StaticLayer attends over all
    allocated slots. This one writes new slots in place and returns a view of the filled ones.
    """

    def __init__(self, num_slots: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_slots = num_slots
        self._num_filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the buffers in the shapes of the first keys and values."""
        super().lazy_initialization(key_states, value_states)
        self._key_buffer, self._value_buffer = (
            states.new_empty((*states.shape[:-2], self._num_slots, states.shape[-1]))
            for states in (key_states, value_states)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append [B, heads, new slots, head size]; returns keys and values of all filled slots."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._num_filled, self._num_filled + key_states.shape[-2]
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        return self._view(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices` of the batch, which may name a row several times."""
        self._key_buffer = self._key_buffer.index_select(0, indices)
        self._value_buffer = self._value_buffer.index_select(0, indices)
        self._view(self._num_filled)

    def _view(self, num_filled: int) -> tuple[Tensor, Tensor]:
        self._num_filled = num_filled
        self.keys: Tensor = self._key_buffer[:, :, :num_filled]
        self.values: Tensor = self._value_buffer[:, :, :num_filled]
        return self.keys, self.values


class PreallocatedCache(Cache):
    """The cache of a model; a layer is added when the model first uses it."""

    def __init__(self, num_slots: int) -> None:
        """Allocate `num_slots` slots in each row, prompt and padding included."""
        super().__init__(layer_class_to_replicate=partial(PreallocatedLayer, num_slots))  # type: ignore[arg-type]
