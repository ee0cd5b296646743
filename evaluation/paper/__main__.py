"""Write one HTML page with the paper's tables and figures, and your runs in them.

python -m evaluation.paper --runs runs --out paper.html

Reads what evaluation.report reads. Tables 1, 3, 4 and 6 have your numbers above those of arXiv 2402.12842; Figure 4 and
Tables 9, 11 and 12 appear where students of PromptKD were evaluated whose trainings differ in that decision alone.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.command import Command
from evaluation.paper.ablations import ablations_section
from evaluation.paper.published import FAMILIES, PUBLISHED
from evaluation.paper.tables import table1, table3, table4, table6
from evaluation.pictures import check_matplotlib
from evaluation.report.__main__ import PageConfig
from evaluation.report.analyses import exposure_section
from evaluation.report.findings import read_findings
from evaluation.report.page import write_page
from kd.config.fields import option
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PaperConfig(PageConfig):
    families: tuple[str, ...] = option(FAMILIES, help="the paper's models in Tables 1 and 4")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.families:
            if name not in FAMILIES:
                raise UserError(f"families: {name!r} is none of {', '.join(FAMILIES)}")


COMMAND = Command(config=PaperConfig, program="python -m evaluation.paper", description=__doc__)


def reproduce(config: PaperConfig) -> None:
    """Write the page.

    Raises:
        UserError: a directory without outputs, a broken file, or no matplotlib.
    """
    check_matplotlib()
    findings = read_findings(config.runs, metric="rougeL", base=None, num_samples=0)
    sections = [
        table1(findings, families=config.families),
        exposure_section(findings),
        table3(findings),
        table4(findings, families=config.families),
        table6(findings),
        ablations_section(findings),
    ]
    footer = f"The paper’s numbers: {PUBLISHED['source']}. {' '.join(PUBLISHED['remarks'])}"
    write_page(config.out, title="The paper’s tables and figures", sections=sections, footer=footer)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, and return the exit code."""
    return COMMAND.run(reproduce, argv)


if __name__ == "__main__":
    sys.exit(main())
