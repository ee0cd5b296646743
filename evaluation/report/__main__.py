"""One page of everything that was measured, beside the paper's numbers.

python -m evaluation.report --runs runs --out report.html

Reads run directories of trainings and the outputs of evaluate.py, evaluation.exposure_bias,
evaluation.student_friendliness, evaluation.judge and evaluation.bench; a directory is searched with what is below it.
An evaluation belongs to the training in whose directory its model lies. Writes one HTML file that needs nothing else,
and beside it, in report_files/, each picture as SVG and PDF and each table as CSV and LaTeX.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.command_options import CommandParser, at_least, file_path, run_command
from evaluation.pictures import check_matplotlib
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to show; each field is an option of the same name."""

    runs: tuple[Path, ...]
    out: Path
    title: str
    samples: int
    paper: tuple[str, ...]


def report(options: Options) -> None:
    """Read, draw and write.

    Raises:
        UserError: a directory without outputs, a broken file, or no matplotlib.
    """
    check_matplotlib()
    # Both need matplotlib, of which --help and a mistake above have no need.
    from evaluation.report.page import files_directory, write_page
    from evaluation.report.sections import make_sections, read_findings

    findings = read_findings(options.runs, families=options.paper, num_samples=options.samples)
    sections, missing = make_sections(findings)
    write_page(options.out, title=options.title, findings=findings, sections=sections, missing=missing)
    files = files_directory(options.out)
    shown = ", ".join(section.title for section in sections)
    print(f"{options.out}: {shown}; pictures and tables for papers: {files}")
    for part in missing:
        print(f"not there: {part.what}: {part.command}")


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Read the command line (`sys.argv` if None).

    Raises:
        UserError: an option that is unknown, missing or out of range.
    """
    parser = CommandParser(
        prog="python -m evaluation.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="outputs, or directories that have some")
    add("--out", type=file_path, required=True, metavar="FILE", help="page to write, such as report.html")
    add("--title", default="Distillation report", metavar="TEXT", help="[%(default)s]")
    add("--samples", type=at_least(0), default=5, metavar="N", help="rows of each benchmark to show [%(default)s]")
    add(
        "--paper", nargs="*", choices=["GPT-2", "OPT", "Llama"], default=["GPT-2", "OPT", "Llama"], metavar="FAMILY",
        help="the paper’s models in Tables 1 and 4: GPT-2, OPT, Llama [all]",
    )  # fmt: skip
    values = parser.parse_args(argv)
    if values.out.suffix != ".html":
        raise UserError(f"--out {values.out}: is no name of a page; end it with .html")
    return Options(
        runs=tuple(values.runs),
        out=values.out,
        title=values.title,
        samples=values.samples,
        paper=tuple(values.paper),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says, and return the exit code."""
    return run_command(lambda: report(parse_options(argv)))


if __name__ == "__main__":
    sys.exit(main())
