"""What the sections of the report show of what was measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from evaluation.compare import paired_difference
from evaluation.generations import generations_file, read_generations, write_generations
from evaluation.report.analyses import costs_section, friendliness_section, judge_section
from evaluation.report.findings import Findings, read_findings
from evaluation.report.samples import instruction_of, samples_section
from evaluation.report.scores import scores_section
from evaluation.report.trainings import settings_section, trainings_section
from tests.unit.evaluation.report_inputs import (
    write_cost,
    write_evaluation,
    write_friendliness,
    write_judgement,
    write_training,
)


def findings_of(directory: Path, *, metric: str = "rougeL", base: str | None = None) -> Findings:
    return read_findings([directory], metric=metric, base=base, num_samples=3)


def records(frame: pd.DataFrame, columns: Sequence[str]) -> list[list[Any]]:
    """The values of some columns, with None where there is no number."""
    return frame[list(columns)].astype(object).where(frame[list(columns)].notna(), None).to_numpy().tolist()


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    """A teacher, and students of SFT and PromptKD."""
    scores = {
        "sft": {"mine": [[10.0, 30.0], [20.0, 24.0]], "vicuna": [[10.0, 12.0], [10.0, 12.0]]},
        "promptkd": {"mine": [[30.0, 40.0], [32.0, 42.0]], "vicuna": [[11.0, 15.0], [9.0, 17.0]]},
    }
    for name in ("sft", "promptkd"):
        write_training(tmp_path / name, method=name, model={"teacher": "hub/teacher"})
        write_evaluation(tmp_path / name / "evaluation", model=tmp_path / name / "final", scores=scores[name])
    teacher = {"mine": [[29.0, 37.0], [31.0, 39.0]], "vicuna": [[20.0, 22.0], [20.0, 22.0]]}
    write_evaluation(tmp_path / "teacher", model="hub/teacher", scores=teacher)
    return tmp_path


def test_scores_have_means_over_seeds_and_mark_the_best_student(scored: Path) -> None:
    table, *_ = scores_section(findings_of(scored)).tables
    assert records(table.frame, ["model", "parameters", "method"]) == [
        ["teacher", "–", ""], ["promptkd", "6", "promptkd"], ["sft", "6", "sft"]
    ]  # fmt: skip
    promptkd = table.frame.set_index("model").loc["promptkd"]
    # Seeds: 35 and 37 on mine, 13 twice on vicuna.
    assert list(promptkd[["mine", "vicuna", "mean of all"]]) == [36.0, 13.0, 24.5]
    assert list(promptkd[["mine ±", "vicuna ±", "mean of all ±"]]) == pytest.approx([1.0, 0.0, 0.5])
    assert table.best is not None
    assert table.best[["mine", "vicuna", "mean of all"]].to_numpy().tolist() == [[False] * 3, [True] * 3, [False] * 3]


def test_the_mean_is_over_benchmarks_that_all_students_have(scored: Path) -> None:
    run = write_training(scored / "new", method="my_package.methods:New")
    write_evaluation(run / "evaluation", model=run / "final", scores={"mine": [[1.0, 2.0]]})
    findings = findings_of(scored)
    assert findings.shared_benchmarks == ["mine"]
    assert records(findings.scores[findings.scores["model"] == "new"], ["method", "mine", "vicuna"]) == [
        ["New", 1.5, None]
    ]
    assert "mean of all" not in findings.scores


def test_another_metric_can_be_chosen(scored: Path) -> None:
    table, *_ = scores_section(findings_of(scored, metric="exact_match")).tables
    assert table.title == "exact match" and list(table.frame["mine"]) == [0.0] * 3


def test_differences_are_those_of_the_paired_bootstrap(scored: Path) -> None:
    _, table, _ = scores_section(findings_of(scored)).tables
    frame = table.frame.set_index("promptkd minus")
    expected = paired_difference(np.array([[30.0, 40.0], [32.0, 42.0]]), np.array([[10.0, 30.0], [20.0, 24.0]]))
    assert list(frame.index) == ["teacher", "sft"] and expected.mean == 15.0
    assert list(frame.loc["sft"][["mine", "mine low", "mine high", "p, mine"]]) == pytest.approx(
        [expected.mean, expected.low, expected.high, expected.p_value]
    )
    _, chosen, _ = scores_section(findings_of(scored, base="sft")).tables
    assert list(chosen.frame["sft minus"]) == ["teacher", "promptkd"] and chosen.frame["mine"].iloc[1] == -15.0


def test_models_with_other_rows_are_not_compared(scored: Path) -> None:
    write_evaluation(scored / "other", model="other", scores={"mine": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]})
    _, table, _ = scores_section(findings_of(scored)).tables
    assert records(table.frame, ["promptkd minus", "mine"])[-1] == ["other", None]


def test_details_have_numbers_of_rows_and_decoding_settings(scored: Path) -> None:
    frame = scores_section(findings_of(scored)).tables[-1].frame
    columns = ["benchmark", "model", "rougeL", "exact_match", "rows", "seeds", "at most", "temperature"]
    assert len(frame) == 6
    assert records(frame, columns)[1] == ["mine", "promptkd", 36.0, 0.0, 2, 2, 256, 1.0]


def test_trainings_have_their_time_and_best_step(scored: Path) -> None:
    (table,) = trainings_section(findings_of(scored)).tables
    columns = [
        "run",
        "steps",
        "minutes",
        "peak memory [GB]",
        "best validation/rougeL",
        "step of best validation/rougeL",
    ]
    assert records(table.frame, columns)[0] == ["promptkd", "4 of 1000", 120.0, 4.0, 50.0, 3]


def test_a_run_before_its_first_step_is_listed(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a", num_steps=0)
    section = trainings_section(findings_of(run))
    assert records(section.tables[0].frame, ["run", "steps", "s per step"]) == [["a", "0 of 1000", None]]
    assert not section.pictures


def test_only_settings_that_differ_are_listed(scored: Path) -> None:
    write_training(scored / "own", method="my_package.methods:New", new={"strength": 0.5}, model={"teacher": None})
    (table,) = settings_section(findings_of(scored)).tables
    assert table.frame.to_numpy().tolist() == [
        ["method", "my_package.methods:New", "promptkd", "sft"],
        ["model.teacher", "–", "hub/teacher", "hub/teacher"],
        ["new.strength", "0.5", "–", "–"],
    ]
    assert not settings_section(findings_of(scored / "sft")).tables


def test_student_friendliness_has_intervals(tmp_path: Path) -> None:
    (table,) = friendliness_section(findings_of(write_friendliness(tmp_path / "a"))).tables
    columns = ["rows", "teacher", "KL(p‖q), final student", "KL(q‖p), final student", "ROUGE-L", "ROUGE-L low"]
    assert records(table.frame, columns)[:3] == [
        ["seen", "without prompt", 2.0, 4.0, 30.0, 29.9],
        ["seen", "with prompt", 1.5, 3.0, 29.0, 28.9],
        ["seen", "difference", -0.5, -1.0, -1.0, -1.1],
    ]


def test_feedback_scores_are_relative_to_the_references(tmp_path: Path) -> None:
    (table,) = judge_section(findings_of(write_judgement(tmp_path / "a", kd=4, promptkd=6))).tables
    columns = ["judge", "model", "benchmark", "score", "comparisons", "without scores"]
    assert records(table.frame, columns)[1] == ["a-judge", "promptkd", "vicuna", 75.0, 4, 0]


def test_costs_are_those_of_the_bench(tmp_path: Path) -> None:
    (table,) = costs_section(findings_of(write_cost(tmp_path / "a"))).tables
    columns = ["preset", "device", "ranks", "method", "ZeRO stage", "allocated [GB]", "reserved [GB]", "s per step"]
    assert records(table.frame, columns)[0] == ["tiny", "a GPU", 4, "gkd", 3, 3.0, 4.0, 1.5]


def test_samples_are_spread_over_the_rows_of_all_models(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "a", model="a", scores={"mine": [[float(row) for row in range(9)]] * 2})
    write_evaluation(tmp_path / "b", model="b", scores={"mine": [[0.0] * 5] * 2}, response="another")
    (table,) = samples_section(findings_of(tmp_path)).tables
    assert list(table.frame["row"]) == ["0", "2", "4"]
    assert list(table.frame.iloc[1]) == ["2", "question 2", "yes", "[2] a response", "[0] another"]


def test_rows_with_other_references_are_not_shown_side_by_side(tmp_path: Path) -> None:
    for name in "ab":
        write_evaluation(tmp_path / name, model=name, scores={"mine": [[1.0] * 3]})
    path = generations_file(tmp_path / "b", benchmark="mine", seed=10)
    rows = read_generations(path)
    write_generations(path, [replace(row, references=("other",)) if row.row == 1 else row for row in rows])
    (table,) = samples_section(findings_of(tmp_path)).tables
    assert list(table.frame["row"]) == ["0", "2"]


def test_the_words_of_the_template_alpaca_are_left_out() -> None:
    prompt = "Below.\n\n### Instruction:\nSay ### Instruction:\n.\n\n### Response:\n"
    assert instruction_of(prompt) == "Say ### Instruction:\n."
    assert instruction_of("Say.") == "Say."
