"""The paper's numbers are the paper's."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.report.paper import Scores, paper_figures

PAPER = Path(__file__).parents[4] / "shared" / "paper" / "paper_results.json"


@pytest.fixture
def printed() -> Any:
    if not PAPER.is_file():
        pytest.skip(f"the paper's tables are not at {PAPER}")
    return json.loads(PAPER.read_text())


def test_averages_of_table_1_are_those_of_the_other_tables() -> None:
    paper = paper_figures()
    gpt2 = next(family for family in paper.table1 if family.family == "GPT-2")
    for student in gpt2.students:
        mean = paper.mean(student.rouge_l["PromptKD"], paper.benchmarks)
        assert mean == pytest.approx(paper.table11.rouge_l[student.size]["linear"], abs=0.03)
    assert paper.table9.rows[0].rouge_l == paper.table12.rows[0].rouge_l == paper.table11.rouge_l["120M"]["linear"]


def test_table_1_is_as_printed(printed: Any) -> None:
    paper = paper_figures()

    def named(scores: Scores) -> dict[str, float]:
        return dict(zip(paper.benchmarks, scores, strict=True))

    found = {
        family.family: {
            "teacher": {
                "params": family.teacher.size,
                "rougeL": dict(zip(paper.benchmarks, family.teacher.rouge_l, strict=True)),
            },
            **{
                student.size: {
                    method: dict(zip(paper.benchmarks, scores, strict=True))
                    for method, scores in student.rouge_l.items()
                }
                for student in family.students
            },
        }
        for family in paper.table1
    }
    assert found == printed["table1_rougeL"]


def test_the_other_tables_are_as_printed(printed: Any) -> None:
    paper = paper_figures()
    costs = printed["table3_cost_opt13b_to_opt6.7b_4xA100"]
    for method, cost in paper.table3.methods.items():
        assert [cost.allocated_gb, cost.cached_gb, cost.hours] == costs[method]
    for family in paper.table4:
        for condition in ("without", "with"):
            values = vars(getattr(family, f"{condition}_prompt"))
            assert list(values.values()) == printed["table4_teacher_prompt"][family.family][condition]
    for method, scores in paper.table6.scores.items():
        assert list(scores) == printed["table6_gpt4_feedback_gpt2_760M"][method]
    adaptations = printed["table9_peft_gpt2_120M"]
    for row, name in zip(paper.table9.rows, ("prompt", "lora_r4_a32", "lora_r8_a16"), strict=True):
        assert [row.rouge_l, row.hours] == [adaptations[name][0], adaptations[name][2]]
    regularization = printed["table11_regularization_avg_rougeL"]
    for student, scores_of in paper.table11.rouge_l.items():
        assert [scores_of["none"], scores_of["linear"]] == [
            regularization["without"][student], regularization["with"][student]
        ]  # fmt: skip
    pairs = printed["table12_divergence_pairs_gpt2_120M"]
    assert [row.rouge_l for row in paper.table12.rows] == [value for value in pairs.values() if value != pairs["note"]]


def test_no_score_is_made_up_for_a_benchmark_that_the_paper_lacks() -> None:
    paper = paper_figures()
    scores = paper.table1[0].teacher.rouge_l
    assert paper.mean(scores, ["Dolly", "mine"]) is None
    assert paper.mean(scores, ["Dolly", "Vicuna"]) == pytest.approx((27.3 + 16.2) / 2)
