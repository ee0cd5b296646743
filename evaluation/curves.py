"""Draw a run's metrics over its steps.

python -m evaluation.curves --run runs/NAME --out curves.png [--metrics student_kd,prompt_kd]

Needs matplotlib (the extra `report`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.pictures import load_pyplot
from kd.errors import EXIT_CODE, UserError
from kd.metrics import FILE_NAME, read_metrics

DEFAULT_METRICS = "student_kd,prompt_kd,prompt_regularization"


def draw(records: Sequence[dict[str, Any]], *, metrics: Sequence[str], title: str, out: Path) -> None:
    """Write one panel with a line for each metric.

    Raises:
        UserError: matplotlib is missing, or no record has one of the metrics.
    """
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
    for metric in metrics:
        points = [(record["step"], record[metric]) for record in records if metric in record]
        if not points:
            known = sorted({name for record in records for name in record} - {"step"})
            raise UserError(f"--metrics: the run has no {metric}; it has {', '.join(known)}")
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 100 else None, label=metric)
    axes.set_xlabel("optimizer step")
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run.dir of a training")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write: .png, .pdf, .svg")
    parser.add_argument("--metrics", default=DEFAULT_METRICS, help="names in metrics.jsonl [%(default)s]")
    arguments = parser.parse_args(argv)
    try:
        if not (arguments.run / FILE_NAME).is_file():
            raise UserError(f"--run {arguments.run}: has no {FILE_NAME}; give the run.dir of a training")
        metrics = arguments.metrics.split(",")
        draw(read_metrics(arguments.run), metrics=metrics, title=str(arguments.run), out=arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
