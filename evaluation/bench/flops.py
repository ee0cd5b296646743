"""Floating-point operations of one training step, by phase."""

from inspect import unwrap
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, addmm_flop, sdpa_backward_flop, sdpa_flop


class PhaseFlops(FlopCounterMode):
    """Counts the floating-point operations of this rank while it is active, by phase.

    torch's counter sees every matrix multiplication and attention kernel that runs, recomputed activations and
    padding included; elementwise operations count nothing. A phase is a `torch.profiler.record_function` range of
    the step. Ranges are dispatched like operations, so the counter reports where they start and end.
    """

    def __init__(self) -> None:
        self.num_flops: dict[str, int] = {}
        self._open: list[tuple[str, int]] = []
        aten, profiler = torch.ops.aten, torch.ops.profiler
        formulas: dict[Any, Any] = {
            # As the same operations out of place and on GPUs. The counter wraps each formula itself.
            aten.addmm_: unwrap(addmm_flop),
            aten._scaled_dot_product_flash_attention_for_cpu: unwrap(sdpa_flop),
            aten._scaled_dot_product_flash_attention_for_cpu_backward: unwrap(sdpa_backward_flop),
            profiler._record_function_enter_new: self._enter,
            profiler._record_function_exit: self._exit,
        }
        super().__init__(display=False, custom_mapping=formulas)

    def _enter(self, name: str, *_: Any, **__: Any) -> int:
        self._open.append((name, self.get_total_flops()))
        return 0

    def _exit(self, *_: Any, **__: Any) -> int:
        name, start = self._open.pop()
        self.num_flops[name] = self.num_flops.get(name, 0) + self.get_total_flops() - start
        return 0
