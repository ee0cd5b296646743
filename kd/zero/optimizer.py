"""Optimizers and learning rate schedules."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from kd.config.schema import OptimizerConfig, ScheduleConfig
from kd.zero.config import Json, zero_stage
from kd.zero.residency import full_shape


def learning_rate_factor(step: int, *, schedule: ScheduleConfig) -> float:
    """Factor of a base learning rate at `step` (from 1 to `schedule.steps`).

    The factor depends on the step alone, so a resumed run needs no state for it.
    """
    if step < schedule.warmup_steps:
        return step / schedule.warmup_steps
    if schedule.decay == "constant":
        return 1.0
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return 1.0 - progress if schedule.decay == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Trainable matrices with weight decay, vectors (norms, biases) without."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if len(full_shape(p)) >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if len(full_shape(p)) < 2], "weight_decay": 0.0},
    ]


def pending_bytes(optimizer: Optimizer | None, *, module: nn.Module, settings: Json, num_ranks: int) -> int:
    """Bytes on this rank's device that the first step allocates: AdamW's two fp32 moments of each trained element."""
    offloads = "offload_optimizer" in settings.get("zero_optimization", {})
    if not isinstance(optimizer, AdamW) or offloads:
        return 0
    num_trained = sum(full_shape(p).numel() for p in module.parameters() if p.requires_grad)
    return 2 * 4 * num_trained // (num_ranks if zero_stage(settings) else 1)


def make_optimizer(groups: Iterable[object], *, settings: OptimizerConfig, learning_rate: float) -> Optimizer:
    """The optimizer that DeepSpeed wraps; groups without their own weight decay have none."""
    optimizer = SGD if settings.name == "sgd" else AdamW
    return optimizer(groups, lr=learning_rate, weight_decay=0.0)  # type: ignore[arg-type]
