"""All sections of the page, from the directories to what is shown."""

from collections.abc import Sequence
from pathlib import Path

from evaluation.report.ablations import ablations_section
from evaluation.report.costs import costs_section
from evaluation.report.exposure import exposure_section
from evaluation.report.feedback import feedback_section
from evaluation.report.findings import Findings, Section
from evaluation.report.friendliness import friendliness_section
from evaluation.report.matching import match_models
from evaluation.report.missing import Missing, missing_parts
from evaluation.report.outputs import find_outputs
from evaluation.report.paper import paper_figures
from evaluation.report.pictures import Looks
from evaluation.report.samples import samples_section
from evaluation.report.scores import scores_section
from evaluation.report.settings import settings_section
from evaluation.report.trainings import trainings_section

_SECTIONS = (
    scores_section,
    trainings_section,
    exposure_section,
    friendliness_section,
    feedback_section,
    costs_section,
    ablations_section,
    samples_section,
    settings_section,
)


def read_findings(directories: Sequence[Path], *, families: Sequence[str], num_samples: int) -> Findings:
    """Read everything in `directories`, and find out whose evaluations they are.

    Raises:
        UserError: a directory without outputs, or a broken file.
    """
    outputs = find_outputs(directories)
    models = match_models(outputs.evaluations, outputs.trainings)
    return Findings(
        outputs=outputs,
        models=tuple(models),
        paper=paper_figures(),
        families=tuple(families),
        num_samples=num_samples,
        looks=Looks([*(run.name for run in outputs.trainings), *(model.name for model in models)]),
    )


def make_sections(findings: Findings) -> tuple[list[Section], list[Missing]]:
    """The sections that have something to show, and what the page lacks.

    Raises:
        UserError: a file of generations is broken.
    """
    sections = [section for section in (make(findings) for make in _SECTIONS) if not section.is_empty]
    keys = {key for section in sections for key in section.keys}
    return sections, list(missing_parts(findings, keys=keys))
