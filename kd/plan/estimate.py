"""Seconds of a step and GPU-hours of a run, as a range: arithmetic with stated rates, not a measurement."""

from dataclasses import dataclass
from typing import Any

from kd.plan.account import Account
from kd.plan.sizes import EngineBytes


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Published figures of a GPU."""

    gib: float
    flops: float
    """bf16 operations per second, dense."""
    bandwidth: float
    """Bytes per second of its memory."""


GPUS = {
    "a100-40gb": Gpu(gib=39.4, flops=312e12, bandwidth=1.56e12),
    "a100-80gb": Gpu(gib=79.1, flops=312e12, bandwidth=2.04e12),
    "h100-80gb": Gpu(gib=79.1, flops=989e12, bandwidth=3.35e12),
    "h200-141gb": Gpu(gib=139.7, flops=989e12, bandwidth=4.8e12),
}


@dataclass(frozen=True, kw_only=True)
class Rates:
    """One end of the range."""

    utilisation: float
    """Share of the GPU's operations that forward and backward passes reach."""
    launch_seconds: float
    """Of the host, per layer and decoded token."""
    mean_length: float
    """Mean response, as a share of the longest."""
    link_in_host: float
    link_between_hosts: float
    """Bytes per second of each GPU in collectives."""
    disk: float
    """Bytes per second of all ranks together."""


FAST = Rates(
    utilisation=0.5,
    launch_seconds=0.3e-3,
    mean_length=0.5,
    link_in_host=200e9,
    link_between_hosts=25e9,
    disk=5e9,
)
SLOW = Rates(
    utilisation=0.25,
    launch_seconds=0.8e-3,
    mean_length=1.0,
    link_in_host=50e9,
    link_between_hosts=6e9,
    disk=0.5e9,
)
ASSUMPTIONS = (
    "passes reach 25 to 50 % of the GPU's bf16 rate; the host needs 0.3 to 0.8 ms per layer and decoded token;"
    " a response has half of the longest length, or all of it; links of 50 to 200 GB/s in a host, 6 to 25 GB/s between"
    " hosts; disks of 0.5 to 5 GB/s"
)


def step_seconds(account: Account, *, gpu: Gpu, rates: Rates) -> float:
    """Estimated seconds of one step, with sampling, without validation and checkpoints."""
    compute = _operations(account, rates) / (gpu.flops * rates.utilisation)
    decoding = _decoding_seconds(account, gpu=gpu, rates=rates)
    is_one_host = len(account.machine.hosts) == 1
    link = rates.link_in_host if is_one_host else rates.link_between_hosts
    return compute + decoding + _collective_bytes(account) / link


def checkpoint_seconds(account: Account, *, rates: Rates) -> float:
    """Estimated seconds of writing one checkpoint."""
    return account.student.checkpoint / rates.disk


def _operations(account: Account, rates: Rates) -> float:
    """Floating-point operations of one rank's passes: 2 per parameter and token forward, 4 backward with gradient."""
    response = account.response_tokens * rates.mean_length
    num_tokens = account.rows * (account.config.data.max_prompt_tokens + response)
    recomputed = 2 if account.config.model.gradient_checkpointing else 0
    per_token: float = account.student.num_elements * (6 + recomputed)
    if account.teacher is not None:
        # Plain, prompted, and the prompt's own pass, whose backward has no gradient of weights.
        passes = 2 + 2 + 4 + recomputed if account.trains_teacher else 2
        per_token += account.teacher.num_elements * passes
    return num_tokens * per_token


def _decoding_seconds(account: Account, *, gpu: Gpu, rates: Rates) -> float:
    needs = account.method.needs(account.config)
    if not needs.rollouts or account.config.data.responses is not None:
        return 0.0
    config: Any = account.fake("student").model.config.get_text_config()
    num_ranks = 1 if account.layout is None else account.layout.num_ranks
    reading = account.student.full / num_ranks / gpu.bandwidth
    # Rows end at different lengths: the batch is as long as its longest.
    num_batches = -(-account.rows * num_ranks // account.decoding_rows)
    tokens = num_batches * account.response_tokens
    return float(tokens * max(reading, config.num_hidden_layers * rates.launch_seconds))


def _collective_bytes(account: Account) -> float:
    """Bytes that each rank receives and sends."""
    config = account.config
    micro_batches = max(1, account.rows // config.schedule.micro_batch)
    passes = 3 if config.model.gradient_checkpointing else 2
    total = 0.0
    engines: list[tuple[EngineBytes | None, int]] = [
        (account.student, passes * micro_batches),
        (account.teacher, 2 + passes * micro_batches if account.trains_teacher else 1),
    ]
    for engine, gathers in engines:
        if engine is None or engine.stage < 3:
            continue
        total += engine.full * (1 if account.gathers_once(engine) else gathers)
    reductions = micro_batches if account.student.stage >= 2 else 1
    return total + 4.0 * account.student.num_trained * reductions
