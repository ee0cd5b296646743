"""Table 4: the teacher with and without its prompt, beside the paper's; and the examples of Table 2."""

from collections.abc import Iterator

from evaluation.intervals import Estimate
from evaluation.report.findings import Findings, Section
from evaluation.report.formats import FriendlinessResults
from evaluation.report.paper import PaperFriendliness
from evaluation.report.samples import prompt_samples
from evaluation.report.tables import Cell, RowGroup, Table, text
from evaluation.student_friendliness.summary import Column, Distance, RowSet


def friendliness_section(findings: Findings) -> Section:
    """Table 4 and the examples of Table 2; empty without an output of evaluation.student_friendliness."""
    outputs = findings.outputs.friendliness
    section = Section(key="student-friendliness", title="What the prompt does to the teacher")
    if not outputs:
        return section
    names = [output.name if len(outputs) > 1 else "This report" for output in outputs]
    groups = [
        RowGroup(title=f"{name}: {direction}", rows=tuple(_teacher_rows(output.results, field)))
        for name, output in zip(names, outputs, strict=True)
        for field, direction in (("forward_kl", "KL(p‖q)"), ("reverse_kl", "KL(q‖p)"))
    ]
    groups += [
        RowGroup(title=f"{one.family}, from the paper (direction not told)", rows=tuple(_paper_teacher_rows(one)))
        for one in findings.paper.table4
        if one.family in findings.families
    ]
    table = Table(
        key="table4",
        title="Table 4: the teacher with and without its prompt",
        columns=(
            "teacher",
            "seen: KL, initial student", "seen: KL, final student", "seen: ROUGE-L",
            "unseen: KL, initial student", "unseen: KL, final student", "unseen: ROUGE-L",
        ),
        groups=tuple(groups),
        note=(
            "Seen: training rows, unseen: validation rows. Divergences in nats per token of the rows’ outputs, ROUGE-L"
            " of the teacher’s own responses, brackets: 95 % intervals over rows. Bold: the smaller divergence, the"
            " larger ROUGE-L."
        ),
    )  # fmt: skip
    samples = [sample for output in outputs for sample in prompt_samples(output.results, limit=findings.num_samples)]
    return Section(key=section.key, title=section.title, tables=(table,), samples=tuple(samples))


def _teacher_rows(results: FriendlinessResults, direction: str) -> Iterator[tuple[Cell, ...]]:
    def numbers(column: Column) -> list[Estimate]:
        distances: tuple[Distance, ...] = (column.initial, column.final)
        return [*(getattr(distance, direction) for distance in distances), column.rougeL]

    sets: list[RowSet] = [results.sets["seen"], results.sets["unseen"]]
    without = [number for one in sets for number in numbers(one.without_prompt)]
    prompted = [number for one in sets for number in numbers(one.with_prompt)]
    for name, own, other in (("without prompt", without, prompted), ("with prompt", prompted, without)):
        yield text(name), *(_contrast(*pair, place) for place, pair in enumerate(zip(own, other, strict=True)))


def _contrast(own: Estimate, other: Estimate, place: int) -> Cell:
    is_score = place % 3 == 2
    interval = None if own.low is None or own.high is None else (own.low, own.high)
    return Cell(
        value=own.value,
        # The paper's differ in the fourth; ours have an interval, which says how many mean something.
        digits=1 if is_score else 3 if interval else 4,
        interval=interval,
        is_best=_wins(own.value, other.value, larger=is_score),
    )


def _wins(own: float | None, other: float | None, *, larger: bool) -> bool:
    return own is not None and other is not None and (own > other if larger else own < other)


def _paper_teacher_rows(one: PaperFriendliness) -> Iterator[tuple[Cell, ...]]:
    names = (
        "seen_initial_kl",
        "seen_final_kl",
        "seen_rouge_l",
        "unseen_initial_kl",
        "unseen_final_kl",
        "unseen_rouge_l",
    )
    for title, own, other in (
        ("without prompt", one.without_prompt, one.with_prompt),
        ("with prompt", one.with_prompt, one.without_prompt),
    ):
        cells = [
            _contrast(
                Estimate(value=getattr(own, name), low=None, high=None),
                Estimate(value=getattr(other, name), low=None, high=None),
                place,
            )
            for place, name in enumerate(names)
        ]
        yield text(title), *cells
