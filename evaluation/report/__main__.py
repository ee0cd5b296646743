"""Write one HTML page with everything that was measured of your runs.

python -m evaluation.report --runs runs --out report.html

Reads run directories of trainings and the outputs of evaluate.py, evaluation.analysis, evaluation.judge
and evaluation.bench; a directory is searched with everything below.
An evaluation belongs to the training in whose directory its model lies. The page needs no other file; beside it,
report_files/ has each picture as SVG and PDF and each table as CSV and LaTeX.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.command import Command
from evaluation.pictures import check_matplotlib
from evaluation.report.analyses import costs_section, exposure_section, friendliness_section, judge_section
from evaluation.report.findings import read_findings
from evaluation.report.page import write_page
from evaluation.report.samples import samples_section
from evaluation.report.scores import scores_section
from evaluation.report.trainings import settings_section, trainings_section
from kd.config.fields import NonNegativeInt, Section, option, required
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PageConfig(Section):
    """What a page is made from, and where it is written to."""

    runs: tuple[Path, ...] = required(help="outputs, or directories that have some")
    out: Path = required(help="page to write, such as report.html")

    def __post_init__(self) -> None:
        if self.out.suffix != ".html":
            raise UserError(f"out is {self.out}; expected a name that ends with .html")
        if self.out.is_dir():
            raise UserError(f"out {self.out}: is a directory; give the path of a file")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(PageConfig):
    title: str = option("Distillation report", help="title of the page")
    metric: str = option("rougeL", help="what models are compared by: a metric of results.json")
    base: str | None = option(None, help="model that the others are compared with; null for PromptKD's, or the first")
    samples: NonNegativeInt = option(5, help="number of rows of each benchmark to show")


COMMAND = Command(config=ReportConfig, program="promptkd report", description=__doc__)


def report(config: ReportConfig) -> None:
    """Write the page.

    Raises:
        UserError: a directory without outputs, a broken file, or no matplotlib.
    """
    check_matplotlib()
    findings = read_findings(config.runs, metric=config.metric, base=config.base, num_samples=config.samples)
    sections = [
        scores_section(findings),
        trainings_section(findings),
        exposure_section(findings),
        friendliness_section(findings),
        judge_section(findings),
        costs_section(findings),
        samples_section(findings),
        settings_section(findings),
    ]
    write_page(config.out, title=config.title, sections=sections, footer="python -m evaluation.report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run(report, argv)


if __name__ == "__main__":
    sys.exit(main())
