"""Floating-point operations of one training step, by phase."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

Shape = Sequence[int]


class PhaseFlops:
    """Counts the floating-point operations of this rank while it is active, by phase.

    torch's counter sees every matrix multiplication and attention kernel that runs, recomputed activations and
    padding included; elementwise operations count nothing. A phase is a `torch.profiler.record_function` range of
    the step. Ranges are dispatched like operations, so the counter reports where they start and end.
    """

    def __init__(self) -> None:
        self.num_flops: dict[str, int] = {}
        self._open: list[tuple[str, int]] = []
        aten, profiler = torch.ops.aten, torch.ops.profiler
        formulas = {
            # torch has formulas for the same operations out of place and on GPUs.
            aten.addmm_: lambda _, left, right, **__: 2 * left[0] * left[1] * right[1],
            aten._scaled_dot_product_flash_attention_for_cpu: _attention,
            aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            profiler._record_function_enter_new: self._enter,
            profiler._record_function_exit: self._exit,
        }
        self._counter = FlopCounterMode(display=False, custom_mapping=formulas)

    @property
    def total(self) -> int:
        """Operations so far, in and between phases."""
        return self._counter.get_total_flops()

    def __enter__(self) -> Self:
        self._counter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._counter.__exit__(*error)

    def _enter(self, name: str, *_: Any, **__: Any) -> int:
        self._open.append((name, self.total))
        return 0

    def _exit(self, *_: Any, **__: Any) -> int:
        name, start = self._open.pop()
        self.num_flops[name] = self.num_flops.get(name, 0) + self.total - start
        return 0


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))
