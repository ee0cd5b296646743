"""Memory and time of the loss, chunked and plain: `python -m evaluation.bench loss`."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import psutil
import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from evaluation.bench.machine import describe_machine
from evaluation.bench.memory import forget_resident_peak, resident_peak
from evaluation.bench.options import LossOptions
from evaluation.bench.outputs import make_out, print_files, write_json
from evaluation.terminal import results_console
from kd.config.schema import EngineConfig
from kd.distributed import find_rank
from kd.errors import UserError
from kd.losses.divergences import reverse_kl
from kd.losses.fused import chunk_rows, fused_loss
from kd.losses.terms import DivergenceTerm, Projection

Kind = Literal["chunked", "plain"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PLAIN_TENSORS = 6
"""Room for so many [positions, vocabulary] tensors of fp32; the plain loss has five of them at once."""


@dataclass(frozen=True, kw_only=True)
class LossCost:
    """Of one loss with its gradients, in a process of its own."""

    seconds: float
    extra_bytes: int
    """Peak, less what was there before and the gradient of the head, which every implementation leaves behind."""
    value: float


def run_loss(options: LossOptions) -> None:
    """Measure both kinds, each in fresh processes, one after the other.

    Raises:
        UserError: several ranks were started, there is too little memory, or --out cannot be made.
    """
    if find_rank().size > 1:
        raise UserError("the loss is measured in one process; start it with python -m evaluation.bench loss")
    _check_memory(options)
    make_out(options.out)
    costs = {kind: [_in_fresh_process(kind, options) for _ in range(options.repeats)] for kind in KINDS}
    _report(costs, options)


def _check_memory(options: LossOptions) -> None:
    weights = 4 * options.vocabulary * (2 * options.student_width + options.teacher_width)
    needed = weights + PLAIN_TENSORS * 4 * options.positions * options.vocabulary
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available
    if needed > free:
        fitting = (free - weights) // (PLAIN_TENSORS * 4 * options.vocabulary)
        raise UserError(
            f"the plain loss of {options.positions} positions takes up to {needed / 2**30:.0f} GiB,"
            f" {free / 2**30:.0f} GiB are free; give --positions {max(1, fitting)} or fewer"
        )


def _in_fresh_process(kind: Kind, options: LossOptions) -> LossCost:
    # Its high-water mark must know nothing of an earlier measurement.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(measure_loss, kind, options).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of the {kind} loss was killed, perhaps for its memory; lower --positions"
            ) from None


def measure_loss(kind: Kind, options: LossOptions) -> LossCost:
    """One forward and backward pass after a small one that warms up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, device=device).normal_()

    student_head = normal(options.vocabulary, options.student_width).mul_(options.student_width**-0.5)
    teacher_head = normal(options.vocabulary, options.teacher_width).mul_(options.teacher_width**-0.5)
    student_hidden = normal(options.positions, options.student_width).requires_grad_()
    teacher_hidden = normal(options.positions, options.teacher_width)
    student_head.requires_grad_()
    loss: Callable[[Projection, Projection], Tensor] = {"chunked": chunked_loss, "plain": plain_loss}[kind]

    def run(positions: int) -> tuple[float, float]:
        student_hidden.grad = student_head.grad = None
        start = time.perf_counter()
        value = loss(
            Projection(hidden=student_hidden[:positions], weight=student_head),
            Projection(hidden=teacher_hidden[:positions], weight=teacher_head),
        )
        value.backward()
        return float(value.detach()), time.perf_counter() - start

    run(min(8, options.positions))
    student_hidden.grad = student_head.grad = None
    before = _forget_peak(device)
    value, seconds = run(options.positions)
    extra = _peak(device) - before - student_head.nbytes
    return LossCost(seconds=seconds, extra_bytes=extra, value=value)


def chunked_loss(student: Projection, teacher: Projection) -> Tensor:
    """The mean of KL(q ‖ p) over the positions, as training has it."""
    vocabulary = len(student.weight)
    return fused_loss(
        student,
        [DivergenceTerm(divergence=reverse_kl, target=teacher)],
        vocabulary_size=vocabulary,
        scale=1 / len(student.hidden),
        chunk_size=chunk_rows(vocabulary, byte_budget=EngineConfig().loss_chunk_mib * 2**20),
    ).loss


def plain_loss(student: Projection, teacher: Projection) -> Tensor:
    """The same by whole logits and autograd."""
    with torch.no_grad():
        target = functional.log_softmax(functional.linear(teacher.hidden, teacher.weight), dim=-1)
    trained = functional.log_softmax(functional.linear(student.hidden, student.weight), dim=-1)
    return (trained.exp() * (trained - target)).sum(dim=-1).mean()


def _forget_peak(device: torch.device) -> int:
    """Start to look for the peak; returns what is taken now [bytes]."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    forget_resident_peak()
    return int(psutil.Process().memory_info().rss)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()


def _report(costs: dict[Kind, list[LossCost]], options: LossOptions) -> None:
    seconds = {kind: statistics.median(cost.seconds for cost in costs[kind]) for kind in KINDS}
    extra = {kind: statistics.median(cost.extra_bytes for cost in costs[kind]) for kind in KINDS}
    table = Table(
        title=f"{options.positions} positions, vocabulary {options.vocabulary}, student {options.student_width},"
        f" teacher {options.teacher_width}, fp32"
    )
    for heading in ("", "seconds", "extra memory (GiB)"):
        table.add_column(heading, justify="right" if heading else "left")
    for kind in KINDS:
        table.add_row(kind, f"{seconds[kind]:.2f}", f"{extra[kind] / 2**30:.3f}")
    ratios = {name: values["chunked"] / values["plain"] for name, values in (("seconds", seconds), ("memory", extra))}
    table.add_row("chunked / plain", f"{ratios['seconds']:.2f}", f"{ratios['memory']:.3f}")
    values = {
        "options": {name: value for name, value in asdict(options).items() if name != "out"},
        "machine": describe_machine(num_ranks=1),
        "costs": {kind: [asdict(cost) for cost in costs[kind]] for kind in KINDS},
        "median_seconds": seconds,
        "median_extra_bytes": extra,
        "chunked_over_plain": ratios,
    }
    write_json(options.out / "loss.json", values)
    console = results_console()
    console.print(table)
    print_files(options.out, console=console)
