"""Time and memory of the loss with its gradients: kd.losses, and full logits with autograd."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from evaluation.bench.fresh import in_fresh_process
from evaluation.bench.machine import describe_briefly, describe_machine
from evaluation.bench.options import LossOptions
from evaluation.bench.report import GIB, make_out, write_json
from evaluation.terminal import results_console
from kd.errors import UserError
from kd.losses.divergences import reverse_kl
from kd.losses.fused import chunk_rows, fused_loss
from kd.losses.terms import DivergenceTerm, Projection


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """Cost of one loss with its gradients, in a process of its own."""

    seconds: float
    extra_bytes: int
    """Peak memory, less what was there before and the gradient of the head, which every implementation leaves."""
    value: float


def run_loss(options: LossOptions) -> None:
    """Measure both losses, each in fresh processes, and write loss.json.

    Raises:
        UserError: --out cannot be made, or a process was killed.
    """
    make_out(options.out)
    costs: dict[str, list[LossCost]] = {}
    for kind in LOSSES:
        try:
            costs[kind] = [in_fresh_process(measure_loss, kind, options) for _ in range(options.repeats)]
        except BrokenProcessPool:
            raise UserError(
                f"the process of the {kind} loss was killed, probably for its memory; lower --positions"
            ) from None
    _report(costs, options)


def measure_loss(kind: str, options: LossOptions) -> LossCost:
    """One forward and backward pass, after a small one that warms up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).normal_()

    student_head = normal(options.vocabulary, options.student_width).mul_(options.student_width**-0.5)
    teacher_head = normal(options.vocabulary, options.teacher_width).mul_(options.teacher_width**-0.5)
    student_hidden = normal(options.positions, options.student_width).requires_grad_()
    teacher_hidden = normal(options.positions, options.teacher_width)
    student_head.requires_grad_()

    def run(positions: int) -> tuple[float, float]:
        student_hidden.grad = student_head.grad = None
        start = time.perf_counter()
        value = LOSSES[kind](
            Projection(hidden=student_hidden[:positions], weight=student_head),
            Projection(hidden=teacher_hidden[:positions], weight=teacher_head),
        )
        value.backward()
        return float(value.detach()), time.perf_counter() - start

    run(min(8, options.positions))
    student_hidden.grad = student_head.grad = None
    before = _memory(device, peak=False)
    value, seconds = run(options.positions)
    return LossCost(seconds=seconds, extra_bytes=_memory(device, peak=True) - before - student_head.nbytes, value=value)


def fused(student: Projection, teacher: Projection) -> Tensor:
    """The mean of KL(q‖p) over the positions as training computes it, chunk by chunk."""
    vocabulary = len(student.weight)
    return fused_loss(
        student,
        [DivergenceTerm(divergence=reverse_kl, target=teacher)],
        vocabulary_size=vocabulary,
        scale=1 / len(student.hidden),
        chunk_size=chunk_rows(vocabulary),
    ).loss


def plain(student: Projection, teacher: Projection) -> Tensor:
    """The same from full logits and autograd."""
    with torch.no_grad():
        target = functional.log_softmax(functional.linear(teacher.hidden, teacher.weight), dim=-1)
    trained = functional.log_softmax(functional.linear(student.hidden, student.weight), dim=-1)
    return (trained.exp() * (trained - target)).sum(dim=-1).mean()


LOSSES: dict[str, Callable[[Projection, Projection], Tensor]] = {"fused": fused, "plain": plain}


def _memory(device: torch.device, *, peak: bool) -> int:
    """Bytes of this process now, or at its peak: resident, or allocated on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    # getrusage would report the process that this one was started from.
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return int(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def _report(costs: dict[str, list[LossCost]], options: LossOptions) -> None:
    seconds = {kind: statistics.median(cost.seconds for cost in costs[kind]) for kind in costs}
    extra = {kind: statistics.median(cost.extra_bytes for cost in costs[kind]) for kind in costs}
    title = f"{options.positions} positions, vocabulary {options.vocabulary}, fp32"
    table = Table("", "seconds", "extra peak memory (GiB)", title=title)
    for kind in costs:
        table.add_row(kind, f"{seconds[kind]:.2f}", f"{extra[kind] / GIB:.3f}")
    ratios = {"seconds": seconds["fused"] / seconds["plain"], "memory": extra["fused"] / extra["plain"]}
    table.add_row("fused ÷ plain", f"{ratios['seconds']:.2f}", f"{ratios['memory']:.3f}")
    machine = describe_machine(num_ranks=1)
    values = {
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "machine": machine,
        "costs": {kind: [asdict(cost) for cost in costs[kind]] for kind in costs},
        "fused_over_plain": ratios,
    }
    write_json(options.out / "loss.json", values)
    console = results_console()
    console.print(table)
    console.print(describe_briefly(machine), f"{options.out}: loss.json", sep="\n", markup=False, soft_wrap=True)
