"""Draw a run's metrics over its steps.

python -m evaluation.curves --run runs/NAME --out curves.png [--metrics student_kd,prompt_kd]

Needs matplotlib (the extra `report`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_options import CommandParser, file_path, run_command
from evaluation.pictures import load_pyplot, write_picture
from evaluation.records import Record, read_records
from kd.errors import UserError

DEFAULT_METRICS = ("student_kd", "prompt_kd", "prompt_regularization", "cross_entropy")


def draw(records: Sequence[Record], *, metrics: Sequence[str], title: str, out: Path) -> None:
    """Write one panel with a line for each metric.

    Raises:
        UserError: matplotlib is missing, no record has one of the metrics, or `out` cannot be written.
    """
    plt = load_pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
    for metric in metrics:
        points = [(record["step"], record[metric]) for record in records if metric in record]
        if not points:
            known = sorted({name for record in records for name in record} - {"step"})
            raise UserError(f"--metrics: the run has no {metric}; it has {', '.join(known) or 'none yet'}")
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 100 else None, label=metric)
    axes.set_xlabel("optimizer step")
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    write_picture(figure, out, dpi=130)
    plt.close(figure)


def _draw_run(argv: Sequence[str] | None) -> None:
    parser = CommandParser(
        prog="python -m evaluation.curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run.dir of a training")
    parser.add_argument(
        "--out", type=file_path, required=True, metavar="FILE", help="picture to write: .png, .pdf, .svg"
    )
    parser.add_argument(
        "--metrics", metavar="A,B,…", help=f"names in metrics.jsonl [those of {', '.join(DEFAULT_METRICS)} that it has]"
    )
    arguments = parser.parse_args(argv)
    records = read_records(arguments.run)
    if arguments.metrics is None:
        usual = [name for name in DEFAULT_METRICS if any(name in record for record in records)]
        metrics = usual or DEFAULT_METRICS[:1]
    else:
        metrics = arguments.metrics.split(",")
    draw(records, metrics=metrics, title=str(arguments.run), out=arguments.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    return run_command(lambda: _draw_run(argv))


if __name__ == "__main__":
    sys.exit(main())
