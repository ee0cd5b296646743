"""Figure 4 and Tables 9, 11 and 12: what changes with one decision about the prompt."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from evaluation.report.findings import Findings, Section, listing
from evaluation.report.models import count_values
from evaluation.report.pictures import Axes, Looks, Picture, draw, label
from evaluation.report.tables import Cell, RowGroup, Table, text
from evaluation.report.variants import Comparison, Student, comparisons
from kd.config.methods import PromptConfig, TeacherLoraConfig
from kd.config.schema import Config
from kd.models.soft_prompt import FILE_NAME

_PROMPT = "prompt tuning"
# A teacher with adapters has neither these tokens nor L_reg.
_OF_TOKENS = frozenset({"length", "init", "init_text", "regularization", "regularization_divergence"})
_ADAPTERS = "teacher_adapter"
"""Directory of a student with the adapters of its teacher."""


def ablations_section(findings: Findings) -> Section:
    """What was varied; empty if nothing was."""
    section = Section(key="ablations", title="One decision changed")
    if not findings.shared_benchmarks:
        return section
    return replace(
        section,
        text=(
            f"ROUGE-L of PromptKD’s students, mean over {listing(findings.shared_benchmarks)}. They are compared where"
            " their trainings differ in the decision alone; several trainings of one setting, such as with other seeds,"
            " count as one, ± the standard error over them.",
        ),
        pictures=tuple(_figure4(findings)),
        tables=(*_table9(findings), *_table11(findings), *_table12(findings)),
    )


def _figure4(findings: Findings) -> Iterator[Picture]:
    """ROUGE-L over the prompt's length, a line for each kind of start."""
    found = list(
        comparisons(
            findings,
            setting=lambda config: (config.prompt.init, config.prompt.length),
            free=("prompt.init", "prompt.length"),
        )
    )
    for index, comparison in enumerate(found, start=1):
        yield draw(
            "figure4" if len(found) == 1 else f"figure4-{index}",
            _prompt_lines(comparison),
            description=f"Figure 4: ROUGE-L by length and start of the prompt, student of {comparison.size}.",
        )


def _prompt_lines(comparison: Comparison[Any]) -> Callable[[Axes], None]:
    looks = Looks(("text", "padding", "random"))
    by_init: dict[str, dict[int, Cell]] = {}
    for variant in comparison.variants:
        init, length = variant.setting
        by_init.setdefault(init, {})[length] = variant.cell

    def paint(axes: Axes) -> None:
        for init, cells in sorted(by_init.items()):
            look, lengths = looks[init], sorted(cells)
            points = [cells[length] for length in lengths]
            axes.plot(
                lengths, [point.value for point in points], look.line, color=look.color, marker=look.marker,
                markersize=5, label=label(init),
            )  # fmt: skip
            for length, point in zip(lengths, points, strict=True):
                if point.standard_error is not None:
                    axes.errorbar(length, point.value, yerr=point.standard_error, color=look.color, capsize=2)
        axes.set_xticks(sorted({length for cells in by_init.values() for length in cells}))
        axes.set_xlabel("length of the prompt m [tokens]")
        axes.set_ylabel("ROUGE-L")
        axes.grid(visible=True, axis="y")

    return paint


def _table9(findings: Findings) -> Iterator[Table]:
    """A prompt, or adapters in the teacher."""
    found = comparisons(findings, setting=_adaptation, free=("prompt.", "teacher_lora."))
    groups = [
        RowGroup(title=f"This report, student of {comparison.size}", rows=tuple(_adaptation_rows(comparison)))
        for comparison in found
        if any(student.run.config.teacher_lora.is_on for one in comparison.variants for student in one.students)
    ]
    if not groups:
        return
    paper = findings.paper.table9
    rows = [
        (
            text(row.adaptation),
            Cell(value=row.rouge_l, digits=2),
            Cell(value=row.num_parameters, digits=0),
            Cell(value=row.hours, digits=2),
        )
        for row in paper.rows
    ]
    yield Table(
        key="table9",
        title="Table 9: how the teacher adapts",
        columns=("adaptation (rank/alpha)", "ROUGE-L", "trained parameters", "time (hour)"),
        groups=(*groups, RowGroup(title=f"The paper: {paper.setting}", rows=tuple(_best_of(rows)))),
    )


@dataclass(frozen=True, kw_only=True)
class _Adaptation:
    """All that decides how the teacher is adapted; fields without effect have their defaults."""

    prompt: PromptConfig
    lora: TeacherLoraConfig

    @property
    def unusual(self) -> set[str]:
        """Fields of `prompt` that are not the defaults, but for the learning rate, which is searched."""
        usual = asdict(PromptConfig())
        return {name for name, value in asdict(self.prompt).items() if value != usual[name]} - {"learning_rate"}

    def label(self, shown: Set[str]) -> str:
        """With the fields `shown` of `prompt`."""
        lora, values = self.lora, asdict(self.prompt)
        size = [f"{lora.rank}/{lora.alpha:g}", *(lora.targets or ())] if lora.is_on else []
        details = size + [f"{name}={_plain(value)}" for name, value in values.items() if name in shown]
        kind = "LoRA" if lora.is_on else _PROMPT
        return f"{kind} ({', '.join(details)})" if details else kind


def _adaptation(config: Config) -> _Adaptation:
    if not config.teacher_lora.is_on:
        return _Adaptation(prompt=config.prompt, lora=TeacherLoraConfig())
    without_effect = {name: getattr(PromptConfig(), name) for name in _OF_TOKENS}
    return _Adaptation(prompt=replace(config.prompt, **without_effect), lora=config.teacher_lora)


def _adaptation_rows(comparison: Comparison[_Adaptation]) -> list[tuple[Cell, ...]]:
    usual = [one.setting for one in comparison.variants if not one.setting.lora.is_on and not one.setting.unusual]
    # Other prompts than the paper's are a matter of Figure 4 and Tables 11 and 12.
    variants = [one for one in comparison.variants if one.setting.lora.is_on or not usual or one.setting in usual]
    rows = []
    for variant in variants:
        alike = [one.setting.prompt for one in variants if one.setting.lora.is_on == variant.setting.lora.is_on]
        varied = {name for name in asdict(alike[0]) if len({getattr(prompt, name) for prompt in alike}) > 1}
        hours = [student.run.seconds / 3600 for student in variant.students if student.run.seconds is not None]
        rows.append(
            (
                text(variant.setting.label(varied | variant.setting.unusual)),
                variant.cell,
                Cell(value=_trained_values(variant.students[0]), digits=0),
                Cell(value=fmean(hours) if hours else None, digits=2 if hours and fmean(hours) >= 1 else 4),
            )
        )
    return _best_of(rows)


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trained_values(student: Student) -> int | None:
    """Numbers in the prompt or in the adapters of the teacher; None where they are not to be found."""
    directory = student.run.directory / (student.model.part or "")
    folders = [path for name in (_ADAPTERS,) for path in sorted(directory.glob(f"{name}/*.safetensors"))]
    return sum(count_values(path) for path in (directory / FILE_NAME, *folders)) or None


def _best_of(rows: Sequence[tuple[Cell, ...]]) -> list[tuple[Cell, ...]]:
    """The rows, with the largest number in the second column marked."""
    marked = _marked([row[1] for row in rows])
    return [(row[0], cell, *row[2:]) for row, cell in zip(rows, marked, strict=True)]


def _marked(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, with the largest number marked if there are several."""
    known = [cell.value for cell in cells if isinstance(cell.value, float)]
    return [replace(cell, is_best=len(known) > 1 and cell.value == max(known)) for cell in cells]


def _table11(findings: Findings) -> Iterator[Table]:
    """With and without regularization."""
    found = list(
        comparisons(findings, setting=lambda config: config.prompt.regularization, free=("prompt.regularization",))
    )
    if not found:
        return
    used = {variant.setting for comparison in found for variant in comparison.variants}
    kinds = ["none", "linear", *sorted(used - {"none", "linear"})]
    own = []
    for comparison in found:
        cells = {variant.setting: variant.cell for variant in comparison.variants}
        own.append((text(comparison.size), *_marked([cells.get(kind, Cell(value=None)) for kind in kinds])))
    paper = findings.paper.table11
    theirs = [
        (text(name), *_marked([Cell(value=scores.get(kind), digits=2) for kind in kinds]))
        for name, scores in paper.rouge_l.items()
    ]
    yield Table(
        key="table11",
        title="Table 11: regularization of the prompt",
        columns=("parameters", *kinds),
        groups=(
            RowGroup(title="This report", rows=tuple(own)),
            RowGroup(title=f"The paper: {paper.setting}", rows=tuple(theirs)),
        ),
    )


def _table12(findings: Findings) -> Iterator[Table]:
    """Pairs of divergences."""
    groups = [
        RowGroup(
            title=f"This report, student of {comparison.size}",
            rows=tuple(_best_of([(text(variant.setting), variant.cell) for variant in comparison.variants])),
        )
        for comparison in comparisons(
            findings,
            setting=lambda config: _pair(config.prompt.kd_divergence, config.prompt.regularization_divergence),
            free=("prompt.kd_divergence", "prompt.regularization_divergence"),
        )
    ]
    if not groups:
        return
    paper = findings.paper.table12
    rows = [(text(_pair(row.kd, row.regularization)), Cell(value=row.rouge_l, digits=2)) for row in paper.rows]
    yield Table(
        key="table12",
        title="Table 12: divergences of the prompt’s loss",
        columns=("L_kd & L_reg", "ROUGE-L"),
        groups=(*groups, RowGroup(title=f"The paper: {paper.setting}", rows=tuple(_best_of(rows)))),
    )


def _pair(kd: str, regularization: str) -> str:
    return " & ".join(name.replace("_kl", " KL").replace("_", " ") for name in (kd, regularization))
