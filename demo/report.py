"""The demo's results: a table with standard errors, and demo/report.png."""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from demo.plan import LABELS, MODELS, RUNS, clocked_metrics, training_seconds
from evaluation.compare import PairedDifference, compare_directories
from kd.train.metric_log import read_metrics

COLORS = {
    "teacher": "#7f7f7f",
    "start": "#9ecae1",
    "more-steps": "#4292c6",
    "more-seconds": "#08519c",
    "promptkd": "#d94801",
}
PICTURE = Path("demo/report.png")
REQUIRED = 2.0
"""Lead of the distilled student [standard errors] that counts as clear."""


def scores_of(name: str) -> tuple[float, float]:
    """Mean test ROUGE-L of a model, and its standard error over the seeds."""
    results = json.loads((Path(RUNS) / "evaluation" / name / "results.json").read_text())
    rouge = results["benchmarks"]["test"]["rougeL"]
    return rouge["mean"], rouge["standard_error"]


def leads() -> dict[str, PairedDifference]:
    """PromptKD's lead over its start and over each control, paired over test rows."""
    directory = Path(RUNS) / "evaluation"
    return {
        name: compare_directories(directory / "promptkd", directory / name, benchmark="test")
        for name in ("start", "more-steps", "more-seconds")
    }


def print_table(differences: dict[str, PairedDifference]) -> None:
    """Print all models with their scores, and PromptKD's lead over each."""
    table = Table(title="Test ROUGE-L, 360 rows, five sampling seeds")
    for heading in ("model", "trained for", "ROUGE-L ± s.e.", "PromptKD leads by"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, label in LABELS.items():
        mean, error = scores_of(name)
        run = "student" if name == "start" else name
        seconds = "" if name == "teacher" else f"{training_seconds(run):.0f} s"
        lead = differences.get(name)
        table.add_row(
            label,
            seconds,
            f"{mean:.1f} ± {error:.1f}",
            "" if lead is None else f"{lead.mean:+.1f} ± {lead.standard_error:.1f}",
        )
    Console().print(table)


def draw_curves(axes: Axes) -> None:
    """Draw validation ROUGE-L over seconds of training, from the common start."""
    start = [record for record in read_metrics(Path(RUNS) / "student") if "validation/rougeL" in record][-1]
    for name in ("more-steps", "more-seconds", "promptkd"):
        seconds, scores = [0.0], [start["validation/rougeL"]]
        for passed, record in clocked_metrics(Path(RUNS) / name):
            if "validation/rougeL" in record:
                seconds.append(passed)
                scores.append(record["validation/rougeL"])
        axes.plot(seconds, scores, marker="o", color=COLORS[name], label=LABELS[name])
    axes.set_xlabel("seconds of training after the first fine-tuning")
    axes.set_ylabel("validation ROUGE-L")
    axes.set_title("Three ways to continue from the same start")
    axes.legend(frameon=False, loc="lower right")


def draw_bars(axes: Axes) -> None:
    """Draw the test ROUGE-L of all models, with standard errors over seeds."""
    names = list(MODELS)
    for position, name in enumerate(names):
        mean, error = scores_of(name)
        axes.barh(position, mean, xerr=error, color=COLORS[name], capsize=3)
        axes.text(mean + error + 1, position, f"{mean:.1f}", va="center")
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 105)
    axes.set_xlabel("test ROUGE-L (mean of five seeds, standard error)")
    axes.set_title("360 test rows")


def main() -> int:
    """Print the table, draw the picture, and return 0 if the lead is clear, else 1."""
    differences = leads()
    print_table(differences)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), constrained_layout=True)
    draw_curves(left)
    draw_bars(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(PICTURE, dpi=130)
    print(f"picture: {PICTURE}")
    weakest = min(differences.values(), key=lambda difference: difference.z)
    if weakest.z < REQUIRED:
        print(f"PromptKD is not clearly ahead: {weakest}", file=sys.stderr)
        return 1
    print(f"PromptKD is ahead of its start and of both controls, by at least {weakest}.")
    return 0
