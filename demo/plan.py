"""Models of the demo's comparison, and the length of each control."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.train.metric_log import read_metrics

RUNS = "demo/runs"
SEEDS = "10,20,30,40,50"

MODELS = {
    "teacher": "demo/teacher",
    "start": f"{RUNS}/student/final",
    "more-steps": f"{RUNS}/more-steps/final",
    "more-seconds": f"{RUNS}/more-seconds/final",
    "promptkd": f"{RUNS}/promptkd/final",
}
"""Directories of the models to score, by name."""

LABELS = {
    "teacher": "teacher",
    "start": "fine-tuned student",
    "more-steps": "+ fine-tuning, as many steps",
    "more-seconds": "+ fine-tuning, as many seconds",
    "promptkd": "+ PromptKD",
}


@dataclass(frozen=True, kw_only=True)
class Control:
    """A way to continue training without a teacher."""

    meaning: str
    overrides: tuple[str, ...]


CONTROLS = {
    "more-steps": Control(
        meaning="for as many optimizer steps, with batches as large",
        overrides=("schedule.global_batch=128", "schedule.micro_batch=64", "optimizer.learning_rate=1.0e-3"),
    ),
    "more-seconds": Control(
        meaning="for as many seconds",
        overrides=("optimizer.learning_rate=2.0e-3",),
    ),
}


def clocked_metrics(run_dir: Path) -> list[tuple[float, dict[str, Any]]]:
    """A run's records, each after the seconds of all optimizer steps so far (no start-up, validation or checkpoint)."""
    previous, passed, records = 0, 0.0, []
    for record in read_metrics(run_dir):
        passed += (record["step"] - previous) * record["step_seconds"]
        previous = record["step"]
        records.append((passed, record))
    return records


def training_seconds(name: str) -> float:
    """Seconds of all optimizer steps of a run of the demo."""
    return clocked_metrics(Path(RUNS) / name)[-1][0]


def control_steps(name: str) -> int:
    """Number of steps of a control: that of PromptKD, or as many as fit into PromptKD's seconds."""
    if name == "more-steps":
        return int(read_metrics(Path(RUNS) / "promptkd")[-1]["step"])
    # The median step of the first fine-tuning, which has the same size.
    costs = sorted(float(record["step_seconds"]) for record in read_metrics(Path(RUNS) / "student"))
    return round(training_seconds("promptkd") / costs[len(costs) // 2])
