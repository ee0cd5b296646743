"""From measured steps to what is reported of a case."""

import statistics
from dataclasses import dataclass

from evaluation.bench.communication import Waiting
from evaluation.bench.floor import Floor, floor_of, moving_seconds
from evaluation.bench.memory import PeakMemory
from evaluation.bench.operations import ExampleBatch, ModelShape, count_step
from evaluation.bench.presets import Preset
from evaluation.bench.rates import Rates
from evaluation.bench.steps import MeasuredSteps
from kd.config.fields import GatherName, MethodName
from kd.models.causal_lm import DTYPES
from kd.zero.recorder import PHASES

COLUMNS = (*PHASES, "communication", "other")
"""What a step's seconds are split into."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One method with one way to shard its models."""

    method: MethodName
    zero_stage: int
    gather: GatherName = "auto"
    """As `engine.gather`."""

    @property
    def name(self) -> str:
        by = "" if self.gather == "auto" else f" by {self.gather}"
        return f"{self.method} ZeRO-{self.zero_stage}{by}"


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Medians over the measured steps of a case."""

    case: Case
    all_step_seconds: list[float]
    step_seconds: float
    seconds: dict[str, float]
    """By `COLUMNS`: each part without its exposed communication, that communication, and what no span covers."""
    floor: Floor
    waiting: Waiting | None
    num_bytes: dict[str, int]
    """Moved by collective operations in a step, per rank."""
    moving_seconds: float
    """What moving them takes at the measured gathering rate."""
    tokens_per_second: float
    response_tokens: float
    """Of a step, on all ranks."""
    peak: PeakMemory


def summarise(case: Case, preset: Preset, steps: MeasuredSteps, *, rates: Rates, num_ranks: int) -> StepCost:
    """Medians, the split of the step, and the floor beside it."""

    def median(name: str) -> float:
        return float(statistics.median(record.get(name, 0.0) for record in steps.records))

    spans = {part: median(f"{part}_seconds") for part in PHASES}
    waiting = steps.waiting
    exposed: dict[str, float] = {part: 0.0 if waiting is None else waiting.share(part) * spans[part] for part in PHASES}
    seconds: dict[str, float] = {part: spans[part] - exposed[part] for part in PHASES}
    seconds["communication"] = sum(exposed.values())
    seconds["other"] = max(0.0, median("step_seconds") - sum(spans.values()))
    return StepCost(
        case=case,
        all_step_seconds=[float(record["step_seconds"]) for record in steps.records],
        step_seconds=median("step_seconds"),
        seconds=seconds,
        floor=mean_floor(case.method, preset, steps, rates=rates, num_ranks=num_ranks),
        waiting=waiting,
        num_bytes=steps.num_bytes,
        moving_seconds=moving_seconds(steps.num_bytes, rates),
        tokens_per_second=median("tokens_per_second"),
        response_tokens=median("response_tokens"),
        peak=steps.peak,
    )


def mean_floor(method: MethodName, preset: Preset, steps: MeasuredSteps, *, rates: Rates, num_ranks: int) -> Floor:
    """Mean of the floors of all measured steps and ranks."""
    dtype = DTYPES[preset.dtype]
    teacher, student = (ModelShape.of(preset.model_config(role), dtype=dtype) for role in ("teacher", "student"))
    floors = []
    for record, ranks in zip(steps.records, steps.prompt_lengths, strict=True):
        for lengths in ranks:
            window = ExampleBatch(
                prompt_lengths=lengths,
                response_tokens=float(record["mean_response_length"]),
                soft_prompt_tokens=preset.soft_prompt_tokens,
                num_ranks=num_ranks,
            )
            work = count_step(method, teacher=teacher, student=student, window=window)
            floors.append(floor_of(work, rates))
    return Floor(
        parts={part: statistics.fmean(floor.parts[part] for floor in floors) for part in PHASES},
        step=statistics.fmean(floor.step for floor in floors),
        step_by_shape=statistics.fmean(floor.step_by_shape for floor in floors),
    )
