"""Memory against the number of ranks, and cost against sizes: `python -m evaluation.bench scaling`.

Starts ranks of its own with torchrun, one group after the other; what they do is in `scaling_ranks`.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from evaluation.bench.axes import AXES, Axis
from evaluation.bench.launching import run_ranks, threads_per_rank
from evaluation.bench.machine import counted, describe_machine
from evaluation.bench.options import ScalingOptions
from evaluation.bench.outputs import make_out, print_files, write_json
from evaluation.bench.pictures import COLOURS, Line, Panel, draw_panels
from evaluation.pictures import check_matplotlib
from evaluation.terminal import results_console
from kd.distributed import find_rank
from kd.errors import UserError
from kd.zero.recorder import PHASES

PARTS = (*PHASES, "communication")
_SHOWN = PARTS[:4]
"""What fits on a terminal; the picture and the file have all."""
Point = dict[str, Any]
"""What `scaling_ranks` found at one value of an axis."""


def run_scaling(options: ScalingOptions) -> None:
    """Measure, print and draw.

    Raises:
        UserError: started on several ranks, with fewer GPUs than ranks, or --out cannot be made.
    """
    if find_rank().size > 1:
        raise UserError("scaling starts its ranks itself; start it with python -m evaluation.bench scaling")
    most = max(*options.memory_ranks, options.ranks)
    if torch.cuda.is_available() and torch.cuda.device_count() < most:
        raise UserError(
            f"{most} ranks need {most} GPUs, this host has {torch.cuda.device_count()};"
            " lower --memory-ranks and --ranks"
        )
    check_matplotlib()
    out = options.out
    make_out(out)
    console = results_console()
    memory = {}
    for num_ranks in options.memory_ranks:
        console.print(f"teacher of cpu-small on {counted(num_ranks, 'rank')} …")
        memory[num_ranks] = _on_ranks("memory", num_ranks, out=out)
    console.print(
        f"PromptKD steps on {counted(options.ranks, 'rank')}, {sum(len(axis.values) for axis in AXES)} points …"
    )
    points = _on_ranks("axes", options.ranks, out=out, more=["--steps", str(options.steps)])
    machine = describe_machine(num_ranks=options.ranks) | {"threads_per_rank": threads_per_rank(options.ranks)}
    write_json(out / "scaling.json", {"machine": machine, "memory": memory, "axes": points})
    _draw(memory, points, machine=machine, out=out)
    console.print(_memory_table(memory))
    for axis in AXES:
        console.print(_axis_table(axis, points[axis.name]))
    print_files(out, console=console)


def _on_ranks(job: str, num_ranks: int, *, out: Path, more: Sequence[str] = ()) -> Any:
    """What a job of `scaling_ranks` found; its log stays in --out."""
    name = f"{job}-on-{num_ranks}"
    work = out / name
    arguments = [job, "--work", str(work), *more]
    found = run_ranks(
        "evaluation.bench.scaling_ranks",
        arguments,
        num_ranks=num_ranks,
        num_threads=threads_per_rank(num_ranks),
        result=work / "result.json",
        log=out / f"{name}.log",
    )
    shutil.rmtree(work)
    return found


def _memory_table(memory: dict[int, list[int]]) -> Table:
    table = Table(title="the teacher's parameter bytes on a rank (ZeRO-3, preset cpu-small)")
    for heading in ("ranks", "largest rank (MB)", "× ranks (MB)"):
        table.add_column(heading, justify="right")
    for num_ranks, ranks in memory.items():
        table.add_row(str(num_ranks), f"{max(ranks) / 1e6:.2f}", f"{max(ranks) * num_ranks / 1e6:.2f}")
    return table


def _axis_table(axis: Axis, points: Sequence[Point]) -> Table:
    table = Table(title=f"seconds of one step (medians) by {axis.label}")
    for heading in (axis.name, "step", *_SHOWN, "floor"):
        table.add_column(heading, justify="right")
    for point in points:
        seconds = [point["step_seconds"], *(point["seconds"][part] for part in _SHOWN), point["floor_seconds"]]
        table.add_row(str(point["value"]), *(f"{value:.3f}" for value in seconds))
    return table


def _draw(memory: dict[int, list[int]], points: dict[str, list[Point]], *, machine: dict[str, Any], out: Path) -> None:
    counts = sorted(memory)
    held = [max(memory[count]) / 1e6 for count in counts]
    ideal = [max(memory[counts[0]]) * counts[0] / count / 1e6 for count in counts]
    panels = [
        Panel(
            title="teacher's parameters on a rank",
            x_label="ranks",
            y_label="MB",
            lines=[
                Line(label="measured", x=counts, y=held, colour=COLOURS["teacher"]),
                Line(label="in proportion to 1 / ranks", x=counts, y=ideal, dashed=True),
            ],
            legend=True,
        )
    ]
    for axis in AXES:
        found = points[axis.name]
        values = [point["value"] for point in found]
        steps, floors = ([point[name] for point in found] for name in ("step_seconds", "floor_seconds"))
        lines = [Line(label="step", x=values, y=steps)]
        for part in PARTS:
            seconds = [point["seconds"][part] for point in found]
            lines.append(Line(label=part, x=values, y=seconds, colour=COLOURS[part]))
        lines.append(Line(label="arithmetic floor", x=values, y=floors, dashed=True))
        panels.append(Panel(title=f"step by {axis.title}", x_label=axis.label, y_label="seconds", lines=lines))
    draw_panels(panels, machine=machine, note="PromptKD on small models", out=out, name="scaling")
