"""Write one HTML page with everything that was measured of your runs.

python -m evaluation.report --runs runs --out report.html

Reads run directories of trainings and the outputs of evaluate.py, evaluation.exposure_bias,
evaluation.student_friendliness, evaluation.judge and evaluation.bench; a directory is searched with everything below.
An evaluation belongs to the training in whose directory its model lies. The page needs no other file; beside it,
report_files/ has each picture as SVG and PDF and each table as CSV and LaTeX.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_options import CommandParser, at_least, file_path, run_command
from evaluation.compare import METRICS
from evaluation.pictures import check_matplotlib
from evaluation.report.analyses import costs_section, exposure_section, friendliness_section, judge_section
from evaluation.report.findings import read_findings
from evaluation.report.page import write_page
from evaluation.report.samples import samples_section
from evaluation.report.scores import scores_section
from evaluation.report.trainings import settings_section, trainings_section

SECTIONS = (
    scores_section,
    trainings_section,
    exposure_section,
    friendliness_section,
    judge_section,
    costs_section,
    samples_section,
    settings_section,
)
"""In the order of the page; each makes a section from what was read, empty if there is nothing to show."""


def page_path(text: str) -> Path:
    """Read the path of a page to write."""
    if not text.endswith(".html"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end with .html")
    return file_path(text)


def report(argv: Sequence[str] | None = None) -> None:
    """Write the page that a command line asks for (`sys.argv` if None).

    Raises:
        UserError: a bad option, a directory without outputs, a broken file, or no matplotlib.
    """
    parser = CommandParser(
        prog="python -m evaluation.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="outputs, or directories that have some")
    add("--out", type=page_path, required=True, metavar="FILE", help="page to write, such as report.html")
    add("--title", default="Distillation report", metavar="TEXT", help="[%(default)s]")
    add("--metric", choices=list(METRICS), default="rougeL", help="what models are compared by [%(default)s]")
    add("--base", metavar="NAME", help="model that the others are compared with [PromptKD's student, or the first]")
    add("--samples", type=at_least(0), default=5, metavar="N", help="rows of each benchmark to show [%(default)s]")
    options = parser.parse_args(argv)
    check_matplotlib()
    findings = read_findings(options.runs, metric=options.metric, base=options.base, num_samples=options.samples)
    sections = [section for section in (make(findings) for make in SECTIONS) if section.pictures or section.tables]
    files = write_page(options.out, title=options.title, sections=sections, footer="python -m evaluation.report")
    print(f"{options.out}: {', '.join(section.title for section in sections)}; tables and pictures: {files}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return run_command(lambda: report(argv))


if __name__ == "__main__":
    sys.exit(main())
