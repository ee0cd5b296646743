"""What the sections of the report say about what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from evaluation.compare import paired_difference
from evaluation.report.costs import costs_section
from evaluation.report.feedback import feedback_section
from evaluation.report.findings import Findings
from evaluation.report.friendliness import friendliness_section
from evaluation.report.samples import request_of, samples_section, spread
from evaluation.report.score_details import details_table, differences_table
from evaluation.report.scores import scores_section, table1
from evaluation.report.sections import read_findings
from evaluation.report.settings import settings_section
from evaluation.report.tables import Cell
from evaluation.report.trainings import thin, trainings_section
from evaluation.responses import Generation
from evaluation.results import generations_file, read_generations, write_generations
from tests.unit.evaluation.report_inputs import (
    write_cost,
    write_evaluation,
    write_friendliness,
    write_judgement,
    write_training,
)

FAMILIES = ("GPT-2", "OPT", "Llama")


def findings_of(*directories: Path, families: Sequence[str] = FAMILIES) -> Findings:
    return read_findings(directories, families=families, num_samples=3)


def values(row: Sequence[Cell]) -> list[float | str | None]:
    return [cell.value if not isinstance(cell.value, float) else pytest.approx(cell.value) for cell in row]


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A teacher and two students; PromptKD's beats the teacher on Dolly."""
    model = {"teacher": "hub/teacher"}
    runs = {"sft": {"method": "sft", "model": {"teacher": None}}, "promptkd": {"model": model}}
    scores = {
        "sft": {"dolly": [[10.0, 30.0], [20.0, 24.0]], "vicuna": [[10.0, 12.0], [10.0, 12.0]]},
        "promptkd": {"dolly": [[30.0, 40.0], [32.0, 42.0]], "vicuna": [[11.0, 15.0], [9.0, 17.0]]},
        "teacher": {"dolly": [[29.0, 37.0], [31.0, 39.0]], "vicuna": [[20.0, 22.0], [20.0, 22.0]]},
    }
    for name, sections in runs.items():
        write_training(tmp_path / name, **sections)
        write_evaluation(tmp_path / name / "evaluation", model=tmp_path / name / "final", scores=scores[name])
    write_evaluation(tmp_path / "teacher", model="hub/teacher", scores=scores["teacher"])
    return tmp_path


def test_table_1_has_means_over_seeds_and_marks_the_best(scored: Path) -> None:
    table = table1(findings_of(scored))
    assert table.columns == ("model", "parameters", "method", "Dolly", "SelfInst", "Vicuna", "S-NI", "UnNI", "mean")
    rows = {row[0].value: row for row in table.groups[0].rows}
    assert list(rows) == ["teacher", "promptkd", "sft"]
    promptkd = rows["promptkd"]
    assert values(promptkd) == ["promptkd", "6", "PromptKD", 36.0, None, 13.0, None, None, 24.5]
    # Seeds: 35 and 37 on Dolly, 13 twice on Vicuna.
    assert [promptkd[place].standard_error for place in (3, 5, 8)] == pytest.approx([1.0, 0.0, 0.5])
    assert [cell.is_best for cell in promptkd[3:]] == [True, False, True, False, False, True]
    assert [cell.beats_teacher for cell in promptkd[3:]] == [True, False, False, False, False, False]
    assert not any(cell.is_best or cell.beats_teacher for cell in (*rows["teacher"], *rows["sft"]))


def test_table_1_has_the_paper_beside_it_over_the_same_benchmarks(scored: Path) -> None:
    table = table1(findings_of(scored))
    assert [group.title for group in table.groups[1:]] == [f"{name}, from the paper" for name in FAMILIES]
    base = table.groups[1].rows[6]
    assert values(base) == ["student", "120M", "PromptKD", 25.6, 13.1, 16.8, 26.8, 28.9, (25.6 + 16.8) / 2]
    assert [cell.is_best for cell in base[3:8]] == [True, True, False, True, True]
    # As printed: of this student only Vicuna has the dagger, of the next size everything.
    assert [cell.beats_teacher for cell in base[3:8]] == [False, False, True, False, False]
    assert all(cell.beats_teacher for cell in table.groups[1].rows[12][3:8])


def test_the_paper_is_apart_where_no_benchmark_is_its_own(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", model="m", scores={"mine": [[1.0, 2.0]]})
    own, paper, _ = scores_section(findings_of(tmp_path)).tables
    assert own.columns == ("model", "parameters", "method", "mine")
    assert len(own.groups) == 1
    assert paper.key == "table1-paper" and paper.is_folded and paper.columns[-1] == "mean"


def test_families_of_the_paper_can_be_left_out(scored: Path) -> None:
    table = table1(findings_of(scored, families=["OPT"]))
    assert [group.title for group in table.groups] == ["This report", "OPT, from the paper"]


def test_differences_are_promptkd_minus_the_others(scored: Path) -> None:
    (table,) = differences_table(findings_of(scored))
    rows = {row[0].value: row for row in table.rows}
    assert list(rows) == ["teacher", "sft"]
    expected = paired_difference(np.array([[30.0, 40.0], [32.0, 42.0]]), np.array([[10.0, 30.0], [20.0, 24.0]]))
    assert expected.mean == 15.0
    assert values(rows["sft"][1:3]) == [expected.mean, expected.p_value]
    assert rows["sft"][1].interval == (expected.low, expected.high)


def test_models_that_answered_other_rows_are_not_compared(scored: Path) -> None:
    write_evaluation(scored / "other", model="other", scores={"dolly": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]})
    (table,) = differences_table(findings_of(scored))
    assert values(table.rows[-1]) == ["other", None, None, None, None]


def test_evaluations_say_how_many_rows_were_decoded_and_how(scored: Path) -> None:
    table = details_table(findings_of(scored))
    assert [group.title for group in table.groups] == ["Dolly", "Vicuna"]
    row = table.groups[0].rows[1]
    assert [cell.value for cell in row[4:6]] == [2, 2]
    assert row[-1].value == "temperature 1, 256 tokens"


def test_trainings_are_told_with_time_and_best_step(scored: Path) -> None:
    table = trainings_section(findings_of(scored)).tables[0]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["steps"].value == "4 of 1000"
    assert row["optimizer steps took"].value == "120 min"
    assert (row["best validation ROUGE-L"].value, row["at step"].value) == (50.0, 3)


def test_table_3_has_trainings_steps_and_the_paper(scored: Path) -> None:
    write_cost(scored / "cost")
    (table,) = costs_section(findings_of(scored)).tables
    runs, steps, paper = (group.rows for group in table.groups)
    # 4 steps of half an hour; the same for both runs.
    assert values(runs[1]) == ["SFT", "sft", 4.0, None, 1800.0, 2.0, 1.0]
    assert [values(row) for row in steps] == [
        ["GKD", "", 3.0, 4.0, 1.5, None, 0.75], ["PromptKD", "", 3.0, 4.0, 2.0, None, 1.0]
    ]  # fmt: skip
    assert values(paper[3]) == ["GKD", "", 41.99, 56.13, None, 25.37, 25.37 / 26.97]


def test_steps_are_compared_with_those_of_the_same_sharding(tmp_path: Path) -> None:
    cases = [
        ({"method": method, "zero_stage": stage, "gather": gather}, seconds)
        for stage, gather, of_gkd, of_promptkd in (
            (3, "layer", 6.0, 8.0),
            (3, "model", 3.0, 6.0),
            (0, "auto", 1.0, 4.0),
        )
        for method, seconds in (("gkd", of_gkd), ("promptkd", of_promptkd))
    ]
    (table,) = costs_section(findings_of(write_cost(tmp_path / "several", cases=cases))).tables
    assert [(row[0].value, row[1].value, row[-1].value) for row in table.groups[0].rows] == [
        ("GKD", "ZeRO-3 by layer", 0.75), ("PromptKD", "ZeRO-3 by layer", 1.0),
        ("GKD", "ZeRO-3 by model", 0.5), ("PromptKD", "ZeRO-3 by model", 1.0),
        ("GKD", "ZeRO-0", 0.25), ("PromptKD", "ZeRO-0", 1.0),
    ]  # fmt: skip
    (only,) = costs_section(findings_of(write_cost(tmp_path / "one", cases=cases[:2]))).tables
    assert [row[1].value for row in only.groups[0].rows] == ["ZeRO-3 by layer"] * 2


def test_table_4_marks_what_the_prompt_improves(tmp_path: Path) -> None:
    section = friendliness_section(findings_of(write_friendliness(tmp_path / "a")))
    without, prompted = section.tables[0].groups[0].rows
    assert values(prompted) == ["with prompt", 1.5, 1.5, 29.0, 1.5, 1.5, 29.0]
    assert [cell.is_best for cell in prompted[1:4]] == [True, True, False]
    assert [cell.is_best for cell in without[1:4]] == [False, False, True]
    assert section.tables[0].groups[1].rows[0][1].value == 4.0
    assert section.tables[0].groups[2].rows[0][1].value == 1.7426
    assert [answer.text for answer in section.samples[0].answers] == ["a response", "", "one", "two"]


def test_table_6_has_the_paper_where_it_judged_the_same_rows(tmp_path: Path) -> None:
    judged = write_judgement(tmp_path / "a", benchmark="vicuna", kd=4, promptkd=6)
    (table,) = feedback_section(findings_of(judged)).tables
    assert table.columns == ("model", "Dolly", "SelfInst", "Vicuna", "comparisons", "without scores")
    assert values(table.groups[0].rows[1]) == ["promptkd", None, None, 75.0, 4, 0]
    assert table.groups[0].rows[1][3].is_best and not table.groups[0].rows[0][3].is_best
    assert values(table.groups[1].rows[2]) == ["PromptKD", 72.12, 67.22, 68.01, None, None]
    (other,) = feedback_section(findings_of(write_judgement(tmp_path / "b", benchmark="mine", kd=4))).tables
    assert other.columns == ("model", "mine", "comparisons", "without scores") and len(other.groups) == 1


def test_only_fields_that_differ_are_listed(scored: Path) -> None:
    (table,) = settings_section(findings_of(scored)).tables
    assert table.columns == ("field", "promptkd", "sft")
    assert [row[0].value for row in table.rows] == ["method", "model.teacher"]
    assert [cell.value for cell in table.rows[1]] == ["model.teacher", "hub/teacher", "–"]


def test_one_run_has_nothing_to_differ_from(tmp_path: Path) -> None:
    write_training(tmp_path / "a")
    assert settings_section(findings_of(tmp_path)).is_empty


def test_samples_are_spread_over_the_rows_of_all_models(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", model="a", scores={"mine": [[float(row) for row in range(9)]] * 2})
    write_evaluation(tmp_path / "b", model="b", scores={"mine": [[0.0] * 5] * 2}, response="another")
    samples = samples_section(findings_of(tmp_path)).samples
    assert [sample.title for sample in samples] == ["mine, row 0", "mine, row 2", "mine, row 4"]
    assert samples[1].prompt == "question 2"
    assert [(answer.speaker, answer.text, answer.score) for answer in samples[1].answers] == [
        ("a", "a response", 2.0), ("b", "another", 0.0)
    ]  # fmt: skip


def rewrite_rows(evaluation: Path, change: Callable[[Generation], Generation]) -> None:
    path = generations_file(evaluation / "generations" / "mine", 10)
    write_generations(path, [change(row) for row in read_generations(path)])


@pytest.mark.parametrize(
    ("field", "template", "expected"),
    [
        ("references", "alpaca", [0, 2]),
        ("prompt", "alpaca", [0, 2]),
        # Prompts of other templates differ in any case, and a tokenizer's own may.
        ("prompt", "mine.jinja", [0, 1, 2]),
        ("prompt", "chat", [0, 1, 2]),
    ],
)
def test_samples_are_of_rows_that_all_models_were_asked(
    tmp_path: Path, field: str, template: str, expected: list[int]
) -> None:
    """The second model's file has another row 1."""
    other = {"references": ("of another file",), "prompt": "another question"}[field]
    first_template = "chat" if template == "chat" else "alpaca"
    write_evaluation(tmp_path / "a", model="a", scores={"mine": [[1.0] * 3]}, template=first_template)
    write_evaluation(tmp_path / "b", model="b", scores={"mine": [[1.0] * 3]}, template=template)
    rewrite_rows(tmp_path / "b", lambda row: replace(row, **{field: other}) if row.row == 1 else row)
    samples = samples_section(findings_of(tmp_path)).samples
    assert [sample.title for sample in samples] == [f"mine, row {row}" for row in expected]


@pytest.mark.parametrize(("number", "expected"), [(0, []), (1, [5]), (2, [5, 9]), (3, [5, 7, 9]), (7, [5, 6, 7, 8, 9])])
def test_rows_are_spread_evenly(number: int, expected: list[int]) -> None:
    assert spread([5, 6, 7, 8, 9], number) == expected


def test_a_prompt_is_cut_only_where_the_template_is_known() -> None:
    prompt = "Below.\n\n### Instruction:\nSay ### Instruction:\n.\n\n### Response:\n"
    assert request_of(prompt, template="alpaca") == "Say ### Instruction:\n."
    assert request_of(prompt, template="mine.jinja") == prompt


def test_long_curves_are_thinned_to_means_of_neighbours() -> None:
    assert thin([1.0, 2.0]) == [1.0, 2.0]
    thinned = thin([float(value) for value in range(3000)])
    assert len(thinned) == 300 and thinned[:2] == [4.5, 14.5]
