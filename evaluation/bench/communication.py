"""Communication of one step: bytes by kind, and the seconds in which nothing else went on.

Both come from extra steps of their own, so that the measured steps are not disturbed:

- *Bytes* from a dispatch mode that sees every collective operation of torch.distributed, whoever calls it and
  whatever the backend. A gather counts its whole result, a scatter or reduction to shards its whole input, an
  all-reduce its tensor twice, as both of its halves do.
- *Seconds* from torch.profiler. Gloo's operations are the events `gloo:*` on threads of their own, NCCL's are
  kernels; both last from when an operation starts to move data until it is complete, the wait for a slower
  rank included. Those parts of them count as communication during which neither the program's thread computes
  (CPU) nor another kernel runs (GPU): what is left is what overlap could still win. On a CPU an overlapped
  gather is not free either, as gloo's threads take the same cores.

DeepSpeed's own comms_logger is not used: on a GPU it waits after every operation and so hides what overlaps, on a
CPU it times no more than the launch of an asynchronous one, and it sees only what goes through deepspeed.comm.
"""

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from kd.zero.recorder import PHASES

Interval = tuple[float, float]

_GATHERS = ("all_gather", "allgather")
_REDUCTIONS = ("all_reduce", "allreduce")
_SCATTERS = ("reduce_scatter",)
OTHER = "other"
"""Outside the parts: counting tokens, norms between spans."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Communication of one step in seconds on one rank."""

    total: float
    """While any collective operation was on its way."""
    exposed: dict[str, float]
    """Of that, without anything else going on, by the part of the step."""
    parts: dict[str, float]
    """Seconds of each part in this step, which is slower than an undisturbed one."""

    def share(self, part: str) -> float:
        """Share of a part's time that is exposed communication."""
        seconds = self.parts.get(part, 0.0)
        return self.exposed.get(part, 0.0) / seconds if seconds else 0.0


class CollectiveBytes(TorchDispatchMode):
    """Adds up the bytes of collective operations by kind while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = {"gathered": 0, "reduced": 0, "other": 0}
        self.num_calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            self._count(func.__name__.removeprefix("_"), args)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, args: tuple[Any, ...]) -> None:
        if name.startswith(("barrier", "monitored_barrier")):
            return
        self.num_calls += 1
        sizes = [sum(tensor.nbytes for tensor in _tensors(arg)) for arg in args]
        # The result comes before the shard in a gather, the shard before the whole in a scatter: the larger counts.
        largest = max(sizes, default=0)
        if name.startswith(_GATHERS):
            self.num_bytes["gathered"] += largest
        elif name.startswith(_SCATTERS):
            self.num_bytes["reduced"] += largest
        elif name.startswith(_REDUCTIONS):
            self.num_bytes["reduced"] += 2 * largest
        else:
            self.num_bytes["other"] += largest


def _tensors(value: object) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def profile_waiting(step: Callable[[], object]) -> Waiting:
    """Run one step under the profiler and find its exposed communication."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        step()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return read_trace([event for event in events if event.get("ph") == "X"])


def read_trace(events: Sequence[dict[str, Any]]) -> Waiting:
    """Exposed communication from the events of a trace, whose times are in microseconds."""
    moves = [event for event in events if _is_move(event)]
    movers = {event["tid"] for event in moves}
    kernels = [event for event in events if event.get("cat") == "kernel" and not _is_move(event)]
    # Where there are kernels the threads only launch them.
    work = kernels or [event for event in events if event.get("cat") == "cpu_op" and _is_work(event, movers)]
    communicating = _merged(_intervals(moves))
    exposed = _without(communicating, _merged(_intervals(work)))
    parts = {name: _merged(_intervals(_spans(events, name))) for name in PHASES}
    seconds = {name: _length(_overlap(exposed, spans)) for name, spans in parts.items()}
    return Waiting(
        total=_length(communicating),
        exposed=seconds | {OTHER: _length(exposed) - sum(seconds.values())},
        parts={name: _length(spans) for name, spans in parts.items()},
    )


def _is_move(event: dict[str, Any]) -> bool:
    name = str(event["name"])
    return name.startswith("gloo:") or (event.get("cat") == "kernel" and "nccl" in name.lower())


def _is_work(event: dict[str, Any], movers: set[Any]) -> bool:
    return event["tid"] not in movers and not str(event["name"]).startswith("c10d::")


def _spans(events: Iterable[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The part's ranges; on a GPU those of its stream, where the work is, and not those of the host."""
    found = [event for event in events if event["name"] == name]
    on_gpu = [event for event in found if event.get("cat") == "gpu_user_annotation"]
    return on_gpu or [event for event in found if event.get("cat") == "user_annotation"]


def _intervals(events: Iterable[dict[str, Any]]) -> list[Interval]:
    return [(event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6) for event in events]


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as disjoint intervals in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _overlap(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """Times that are in both of two lists of disjoint intervals in order."""
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            found.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def _without(whole: Sequence[Interval], holes: Sequence[Interval]) -> list[Interval]:
    """Times of `whole` that are in none of `holes`; both disjoint and in order."""
    if not holes:
        return list(whole)
    ends = [(-torch.inf, holes[0][0])]
    ends += [(before[1], after[0]) for before, after in itertools.pairwise(holes)]
    ends.append((holes[-1][1], torch.inf))
    return _overlap(whole, ends)


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
