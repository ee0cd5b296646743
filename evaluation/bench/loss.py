"""Time and memory of the loss with its gradients: kd.losses, and full logits with autograd."""

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from evaluation.bench.fresh import in_fresh_process
from evaluation.bench.results import DTYPES, GIB, describe_machine, make_out, print_results
from evaluation.command import Command
from evaluation.results import write_json
from kd.config.fields import Count, Section, option
from kd.distributed import on_gpu
from kd.errors import UserError
from kd.losses.fused import fused_loss
from kd.losses.outputs import Head, Outputs, chunk_rows
from kd.losses.terms import TRAINED, kl

REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """Cost of one loss with its gradients."""

    seconds: float
    """Median."""
    all_seconds: list[float]
    extra_bytes: int
    """Peak memory, less what was there before and the gradient of the head, which every implementation leaves."""
    value: float


@dataclass(frozen=True, kw_only=True)
class LossConfig(Section):
    positions: Count = option(4096, help="number of response positions")
    vocabulary: Annotated[int, Field(ge=2, strict=True)] = option(151936, help="number of entries of the vocabulary")
    widths: tuple[Count, Count] = option((512, 1024), help="width of the student, of the teacher: 512,1024")
    dtype: Literal["bf16", "fp32"] = option("fp32", help="precision of hidden states and heads")
    out: Path | None = option(None, help="new directory for the results; null for a new one in runs/")


LOSS = Command(config=LossConfig, program="python -m evaluation.bench loss", description=__doc__)


def run_loss(config: LossConfig) -> None:
    """Measure both losses, each in a fresh process, and write loss.json.

    Raises:
        UserError: --out cannot be made, or a process was killed.
    """
    out, positions, vocabulary = make_out(config.out, command="loss"), config.positions, config.vocabulary
    costs: dict[str, LossCost] = {}
    for kind in ("fused", "plain"):
        try:
            costs[kind] = in_fresh_process(measure_loss, kind, config)
        except BrokenProcessPool:
            raise UserError(f"the {kind} loss was killed, probably for its memory; lower --positions") from None
    fused, plain = costs["fused"], costs["plain"]
    ratios = {"seconds": fused.seconds / plain.seconds, "memory": fused.extra_bytes / plain.extra_bytes}
    widths = " and ".join(map(str, config.widths))
    title = f"{positions} positions, vocabulary {vocabulary}, widths {widths}, {config.dtype}"
    table = Table("", "seconds", "extra peak memory (GiB)", title=title)
    for kind, cost in costs.items():
        table.add_row(kind, f"{cost.seconds:.2f}", f"{cost.extra_bytes / GIB:.3f}")
    table.add_row("fused ÷ plain", f"{ratios['seconds']:.2f}", f"{ratios['memory']:.3f}")
    machine = describe_machine(num_ranks=1)
    values = {
        "positions": positions,
        "vocabulary": vocabulary,
        "machine": machine,
        "costs": {kind: asdict(cost) for kind, cost in costs.items()},
        "fused_over_plain": ratios,
    }
    write_json(out / "loss.json", values)
    print_results(table, machine=machine, out=out)


def measure_loss(kind: str, config: LossConfig) -> LossCost:
    """Forward and backward passes, after one that warms up; the same inputs each time."""
    device = torch.device("cuda" if on_gpu() else "cpu")
    torch.manual_seed(0)

    def outputs(width: int, *, requires_grad: bool) -> Outputs:
        hidden, weight = (
            torch.empty(rows, width, device=device).normal_(std=std).to(DTYPES[config.dtype])
            for rows, std in ((config.positions, 1.0), (config.vocabulary, width**-0.5))
        )
        head = Head(weight=weight.requires_grad_(requires_grad), vocabulary_size=config.vocabulary)
        return Outputs(hidden=hidden.requires_grad_(requires_grad), head=head)

    student = outputs(config.widths[0], requires_grad=True)
    teacher = outputs(config.widths[1], requires_grad=False)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = _memory(device, peak=False)
    values, seconds = [], []
    for _ in range(1 + REPEATS):
        student.hidden.grad = student.head.weight.grad = None
        start = time.perf_counter()
        loss = LOSSES[kind](student, teacher)
        # The value is read from the device, which has finished then.
        values.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return LossCost(
        seconds=statistics.median(seconds[1:]),
        all_seconds=seconds[1:],
        extra_bytes=_memory(device, peak=True) - before - student.head.weight.nbytes,
        value=values[-1],
    )


def fused(student: Outputs, teacher: Outputs) -> Tensor:
    """The mean of KL(q‖p) over the positions as training computes it, chunk by chunk."""
    chunk_size = chunk_rows(student.head.vocabulary_size)
    loss = fused_loss(student, [kl(TRAINED, teacher)], scale=1 / len(student), chunk_size=chunk_size).loss
    loss.backward()
    return loss.detach()


def plain(student: Outputs, teacher: Outputs) -> Tensor:
    """The same from full logits and autograd."""

    def log_probs(outputs: Outputs) -> Tensor:
        logits = functional.linear(outputs.hidden, outputs.head.weight)
        return functional.log_softmax(logits, dim=-1, dtype=torch.float32)

    target, trained = log_probs(teacher), log_probs(student)
    loss = (trained.exp() * (trained - target)).sum(dim=-1).mean()
    loss.backward()
    return loss.detach()


def gemms(student: Outputs, teacher: Outputs) -> Tensor:
    """The GEMMs alone, in the heads' dtype: a lower bound of the time. Both models' logits, and two for gradients."""
    logits = functional.linear(student.hidden, student.head.weight)
    target = functional.linear(teacher.hidden, teacher.head.weight)
    logits.backward(logits.detach())
    return target[0, 0]


def liger(student: Outputs, teacher: Outputs) -> Tensor:
    """The same loss from Liger's kernel, compiled by torch: its generalised JSD with β = 1."""
    # By name: type checkers must not need it.
    module: Any = importlib.import_module("liger_kernel.chunked_loss")
    compute = module.LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0)
    labels = torch.zeros(len(student), dtype=torch.long, device=student.hidden.device)
    loss: Tensor = compute(student.hidden, student.head.weight, teacher.hidden, teacher.head.weight, labels)
    loss.backward()
    return loss.detach()


LOSSES: dict[str, Callable[[Outputs, Outputs], Tensor]] = {"fused": fused, "plain": plain, "gemms": gemms}
"""Each computes the loss and its gradients, and returns the loss."""
if importlib.util.find_spec("liger_kernel") is not None:
    LOSSES["liger"] = liger


def _memory(device: torch.device, *, peak: bool) -> int:
    """Bytes of this process now, or at its peak: resident, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    # getrusage would report the process that this one was started from.
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
