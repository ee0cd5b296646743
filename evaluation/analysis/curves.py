"""Draw a run's metrics over its steps.

python -m evaluation.analysis.curves --run runs/NAME --out curves.png [--metrics student_kd prompt_kd]

Needs matplotlib (the extra `report`).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.command import Command
from evaluation.pictures import load_pyplot, write_picture
from kd.config.fields import Section, option, required
from kd.errors import UserError
from kd.train.metric_log import read_metrics

DEFAULT_METRICS = ("student_kd", "prompt_kd", "prompt_regularization", "cross_entropy")


@dataclass(frozen=True, kw_only=True)
class CurvesConfig(Section):
    run: Path = required(help="run.dir of a training")
    out: Path = required(help="picture to write: .png, .pdf, .svg")
    metrics: tuple[str, ...] | None = option(
        None, help=f"names in metrics.jsonl; null for those of {', '.join(DEFAULT_METRICS)} that it has"
    )


COMMAND = Command(config=CurvesConfig, program="python -m evaluation.analysis.curves", description=__doc__)


def draw(config: CurvesConfig) -> None:
    """Write a picture with a line for each metric.

    Raises:
        UserError: matplotlib is missing, no record has one of the metrics, or a file cannot be read or written.
    """
    plt = load_pyplot()
    records = read_metrics(config.run)
    known = {name for record in records for name in record}
    figure, axes = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
    for metric in config.metrics or [name for name in DEFAULT_METRICS if name in known] or DEFAULT_METRICS[:1]:
        points = [(record["step"], record[metric]) for record in records if metric in record]
        if not points:
            names = ", ".join(sorted(known - {"step"})) or "none yet"
            raise UserError(f"metrics: the run has no {metric}; it has {names}")
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 100 else None, label=metric)
    axes.set_xlabel("optimizer step")
    axes.set_title(str(config.run))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_picture(figure, config.out, dpi=130)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run(draw, argv)


if __name__ == "__main__":
    sys.exit(main())
