"""Write one HTML page with the paper's tables and figures, and your runs in them.

python -m evaluation.paper --runs runs --out paper.html

Reads what evaluation.report reads. Tables 1, 3, 4 and 6 have your numbers above those of arXiv 2402.12842; Figure 4 and
Tables 9, 11 and 12 appear where students of PromptKD were evaluated whose trainings differ in that decision alone.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.command_options import CommandParser, run_command
from evaluation.paper.ablations import ablations_section
from evaluation.paper.published import FAMILIES, PUBLISHED
from evaluation.paper.tables import table1, table3, table4, table6
from evaluation.pictures import check_matplotlib
from evaluation.report.__main__ import page_path
from evaluation.report.analyses import exposure_section
from evaluation.report.findings import read_findings
from evaluation.report.page import write_page


def reproduce(argv: Sequence[str] | None = None) -> None:
    """Write the page that a command line asks for (`sys.argv` if None).

    Raises:
        UserError: a bad option, a directory without outputs, a broken file, or no matplotlib.
    """
    parser = CommandParser(
        prog="python -m evaluation.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--runs", type=Path, nargs="+", required=True, metavar="DIR", help="outputs, or directories that have some")
    add("--out", type=page_path, required=True, metavar="FILE", help="page to write, such as paper.html")
    add("--families", nargs="+", choices=FAMILIES, default=FAMILIES, help="the paper's models in Tables 1 and 4 [all]")
    options = parser.parse_args(argv)
    check_matplotlib()
    findings = read_findings(options.runs, metric="rougeL", base=None, num_samples=0)
    sections = [
        table1(findings, families=options.families),
        exposure_section(findings),
        table3(findings),
        table4(findings, families=options.families),
        table6(findings),
        ablations_section(findings),
    ]
    shown = [section for section in sections if section.pictures or section.tables]
    footer = f"The paper’s numbers: {PUBLISHED['source']}. {' '.join(PUBLISHED['remarks'])}"
    files = write_page(options.out, title="The paper’s tables and figures", sections=shown, footer=footer)
    print(f"{options.out}: {', '.join(section.title for section in shown)}; tables and pictures: {files}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return run_command(lambda: reproduce(argv))


if __name__ == "__main__":
    sys.exit(main())
