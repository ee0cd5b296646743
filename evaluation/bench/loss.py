"""Time and memory of the loss with its gradients: kd.losses, and full logits with autograd."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from evaluation.bench.fresh import in_fresh_process
from evaluation.bench.results import GIB, describe_machine, make_out, print_results
from evaluation.command import Command
from evaluation.results import write_json
from kd.config.fields import Count, Section, option
from kd.distributed import on_gpu
from kd.errors import UserError
from kd.losses.fused import fused_loss
from kd.losses.outputs import Head, Outputs, chunk_rows
from kd.losses.terms import TRAINED, kl

REPEATS = 3
STUDENT_WIDTH, TEACHER_WIDTH = 512, 1024


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
    out: Path | None = option(None, help="new directory for the results; null for a new one in runs/")


LOSS = Command(config=LossConfig, program="python -m evaluation.bench loss", description=__doc__)


def run_loss(config: LossConfig) -> None:
    """Measure both losses, each in a fresh process, and write loss.json.

    Raises:
        UserError: --out cannot be made, or a process was killed.
    """
    out, positions, vocabulary = make_out(config.out, command="loss"), config.positions, config.vocabulary
    costs: dict[str, LossCost] = {}
    for kind in LOSSES:
        try:
            costs[kind] = in_fresh_process(measure_loss, kind, positions, vocabulary)
        except BrokenProcessPool:
            raise UserError(f"the {kind} loss was killed, probably for its memory; lower --positions") from None
    fused, plain = costs["fused"], costs["plain"]
    ratios = {"seconds": fused.seconds / plain.seconds, "memory": fused.extra_bytes / plain.extra_bytes}
    title = f"{positions} positions, vocabulary {vocabulary}, widths {STUDENT_WIDTH} and {TEACHER_WIDTH}, fp32"
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


def measure_loss(kind: str, positions: int, vocabulary: int) -> LossCost:
    """Forward and backward passes, after one that warms up; the same inputs each time."""
    device = torch.device("cuda" if on_gpu() else "cpu")
    torch.manual_seed(0)

    def outputs(width: int, *, requires_grad: bool) -> Outputs:
        hidden = torch.empty(positions, width, device=device).normal_().requires_grad_(requires_grad)
        weight = torch.empty(vocabulary, width, device=device).normal_(std=width**-0.5).requires_grad_(requires_grad)
        return Outputs(hidden=hidden, head=Head(weight=weight, vocabulary_size=vocabulary))

    student = outputs(STUDENT_WIDTH, requires_grad=True)
    teacher = outputs(TEACHER_WIDTH, requires_grad=False)
    before = _memory(device, peak=False)
    values, seconds = [], []
    for _ in range(1 + REPEATS):
        student.hidden.grad = student.head.weight.grad = None
        start = time.perf_counter()
        loss = LOSSES[kind](student, teacher)
        loss.backward()
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
    return fused_loss(student, [kl(TRAINED, teacher)], scale=1 / len(student), chunk_size=chunk_size).loss


def plain(student: Outputs, teacher: Outputs) -> Tensor:
    """The same from full logits and autograd."""
    target = functional.log_softmax(functional.linear(teacher.hidden, teacher.head.weight), dim=-1)
    trained = functional.log_softmax(functional.linear(student.hidden, student.head.weight), dim=-1)
    return (trained.exp() * (trained - target)).sum(dim=-1).mean()


LOSSES: dict[str, Callable[[Outputs, Outputs], Tensor]] = {"fused": fused, "plain": plain}


def _memory(device: torch.device, *, peak: bool) -> int:
    """Bytes of this process now, or at its peak: resident, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    # getrusage would report the process that this one was started from.
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
