"""The paper's tables with the user's numbers in them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("matplotlib")

from evaluation.paper.__main__ import main
from evaluation.paper.ablations import ablations_section, compare, promptkd_students
from evaluation.paper.published import BENCHMARKS, column_of, published
from evaluation.paper.tables import table1, table3, table4, table6
from evaluation.report.findings import Findings, read_findings
from tests.unit.evaluation.report_inputs import (
    write_cost,
    write_evaluation,
    write_friendliness,
    write_judgement,
    write_training,
)


def findings_of(directory: Path) -> Findings:
    return read_findings([directory], metric="rougeL", base=None, num_samples=0)


def write_student(directory: Path, *, score: float, benchmark: str = "mine", **sections: Any) -> None:
    write_training(directory, **sections)
    write_evaluation(directory / "evaluation", model=directory / "final", scores={benchmark: [[score, score]]})


def test_published_tables_agree_with_each_other() -> None:
    frame = published("table1", families=["GPT-2"])
    promptkd = frame[frame["method"] == "PromptKD"].set_index("parameters")[BENCHMARKS].mean(axis=1)
    regularized = published("table11").query("regularization == 'linear'").set_index("parameters")["ROUGE-L"]
    assert promptkd.to_dict() == pytest.approx(regularized.to_dict(), abs=0.03)
    # 120M with the paper's settings is in three tables.
    assert {published(key)["ROUGE-L"][0] for key in ("table9", "table12")} == {regularized["120M"]}


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("s_ni", "S-NI"),
        ("S-NI", "S-NI"),
        ("dolly_test", "Dolly"),
        ("dolly_validation", "Dolly (validation)"),
        ("a", "a"),
    ],
)
def test_benchmarks_of_the_paper_get_its_columns(name: str, column: str) -> None:
    assert column_of(name) == column


def test_table_1_has_the_papers_rows_below_over_the_same_benchmarks(tmp_path: Path) -> None:
    write_training(tmp_path / "a")
    scores = {"vicuna": [[10.0, 14.0]], "mine": [[1.0, 3.0]], "dolly_test": [[30.0, 34.0]]}
    write_evaluation(tmp_path / "e", model=tmp_path / "a" / "final", scores=scores)
    (table,) = table1(findings_of(tmp_path), families=["GPT-2"]).tables
    numbers = [name for name in table.frame.select_dtypes("number") if not name.endswith("±")]
    assert numbers == [*BENCHMARKS, "mine", "mean"]
    assert list(table.frame.iloc[0][["source", "model", "Dolly", "Vicuna", "mine", "mean"]]) == [
        "these runs", "a", 32.0, 12.0, 2.0, 22.0
    ]  # fmt: skip
    # The paper's PromptKD with 120M parameters: best in all columns but Vicuna.
    paper = table.frame.iloc[7]
    assert list(paper[["method", "parameters"]]) == ["PromptKD", "120M"] and paper["mean"] == pytest.approx(21.2)
    assert table.best is not None and table.best.iloc[7][BENCHMARKS].tolist() == [True, True, False, True, True]


def test_two_benchmarks_do_not_share_a_column(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", model="m", scores={"dolly": [[1.0]], "dolly_test": [[2.0]], "vicuna": [[3.0]]})
    (table,) = table1(findings_of(tmp_path), families=["GPT-2"]).tables
    assert list(table.frame.iloc[0][["dolly", "dolly_test", "Vicuna"]]) == [1.0, 2.0, 3.0]


def test_table_3_compares_times_within_each_source(tmp_path: Path) -> None:
    write_training(tmp_path / "sft", method="sft", num_steps=2)
    write_training(tmp_path / "promptkd")
    write_cost(tmp_path / "cost")
    (table,) = table3(findings_of(tmp_path)).tables
    frame = table.frame.set_index(["source", "method"])
    # Steps take half an hour.
    assert frame.loc["sft", "sft"]["time [h]"] == 1.0
    relative = frame["time ÷ PromptKD’s"]
    assert relative["sft", "sft"] == 0.5
    assert relative["tiny", "gkd"] == 0.75
    assert relative["paper", "GKD"] == pytest.approx(25.37 / 26.97)


def test_tables_4_and_6_have_the_papers_rows_below(tmp_path: Path) -> None:
    write_friendliness(tmp_path / "friendliness")
    write_judgement(tmp_path / "judge", benchmark="vicuna", kd=4)
    findings = findings_of(tmp_path)
    (friendliness,), (judged,) = table4(findings, families=["OPT"]).tables, table6(findings).tables
    assert friendliness.frame["unseen: KL, final student"].tolist() == [2.0, 1.5, 4.0, 3.0, 0.8302, 0.8065]
    assert judged.frame["Vicuna"].tolist() == [50.0, 66.68, 67.78, 68.01]


def by_regularization(directory: Path) -> list[dict[str, float]]:
    found = compare(promptkd_students(findings_of(directory)), ["prompt.regularization"])
    return [one.set_index("prompt.regularization")["ROUGE-L"].to_dict() for one in found]


def test_trainings_with_another_difference_are_not_compared(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_student(tmp_path / "b", score=10, prompt={"regularization": "none"}, schedule={"steps": 500})
    write_student(tmp_path / "c", score=40, prompt={"regularization": "none"}, method="gkd")
    assert by_regularization(tmp_path) == []
    write_student(tmp_path / "d", score=30, prompt={"regularization": "none"})
    assert by_regularization(tmp_path) == [{"linear": 20.0, "none": 30.0}]


def test_seeds_and_settings_of_memory_are_averaged(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_student(tmp_path / "b", score=22, run={"seed": 7}, schedule={"micro_batch": 2}, teacher_lora={"alpha": 8.0})
    write_student(tmp_path / "c", score=30, prompt={"regularization": "none"}, checkpoints={"every": 7})
    (table,) = ablations_section(findings_of(tmp_path)).tables
    own = table.frame[table.frame["source"] == "these runs"].set_index("regularization")
    assert table.key == "table11" and own["ROUGE-L"].to_dict() == {"linear": 21.0, "none": 30.0}
    assert own["ROUGE-L ±"]["linear"] == pytest.approx(1.0)
    assert table.frame["ROUGE-L"].iloc[-1] == 25.08


def test_the_best_student_stands_for_a_run_if_it_was_evaluated(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_evaluation(tmp_path / "a" / "of-best", model=tmp_path / "a" / "best", scores={"mine": [[25.0, 25.0]]})
    write_student(tmp_path / "b", score=30, prompt={"regularization": "none"})
    assert by_regularization(tmp_path) == [{"linear": 25.0, "none": 30.0}]


def test_table_9_compares_a_prompt_with_adapters(tmp_path: Path) -> None:
    write_student(tmp_path / "prompt", score=20)
    write_student(tmp_path / "longer", score=50, prompt={"length": 10})
    assert [table.key for table in ablations_section(findings_of(tmp_path)).tables] == []
    # With adapters, the prompt's tokens and its regularization have no effect.
    for name, seed in (("lora", 1), ("lora-seed", 2)):
        prompt = {"regularization": "none", "length": 3 * seed}
        write_student(tmp_path / name, score=18, prompt=prompt, teacher_lora={"rank": 4}, run={"seed": seed})
        final = tmp_path / name / "final"
        (final / "soft_prompt.safetensors").unlink()
        (final / "teacher_adapter").mkdir()
        save_file({"a": torch.zeros(3, 5)}, final / "teacher_adapter" / "adapter_model.safetensors")
    (table,) = ablations_section(findings_of(tmp_path)).tables
    own = table.frame[table.frame["source"] == "these runs"].set_index("adaptation")
    columns = ["ROUGE-L", "trained values", "time [h]"]
    assert {name: list(row) for name, row in own[columns].iterrows()} == {
        "LoRA (4/32)": [18.0, 15, 2.0],
        "prompt tuning, length 7": [20.0, 28, 2.0],
        "prompt tuning, length 10": [50.0, 28, 2.0],
    }


def test_table_12_has_pairs_of_divergences(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_student(tmp_path / "b", score=22, prompt={"regularization_divergence": "forward_kl"})
    (table,) = ablations_section(findings_of(tmp_path)).tables
    assert table.frame[["L_kd", "L_reg", "ROUGE-L"]].to_numpy().tolist()[:3] == [
        ["reverse_kl", "reverse_kl", 20.0], ["reverse_kl", "forward_kl", 22.0], ["reverse_kl", "reverse_kl", 22.25]
    ]  # fmt: skip


def test_the_page_has_figure_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_student(tmp_path / "a", score=20, benchmark="vicuna")
    write_student(tmp_path / "b", score=18, benchmark="vicuna", prompt={"length": 5, "init": "random"})
    assert main(["--runs", str(tmp_path), "--out", str(tmp_path / "paper.html")]) == 0
    assert "Table 1, Table 3, Figure 4 and Tables 9, 11 and 12" in capsys.readouterr().out
    drawn = (tmp_path / "paper_files" / "figure4-1.svg").read_text()
    assert all(f">{word}</text>" in drawn for word in ("text", "random", "length of the prompt m [tokens]"))


def test_runs_without_an_evaluation_have_costs_alone(tmp_path: Path) -> None:
    write_training(tmp_path / "a")
    assert main(["--runs", str(tmp_path), "--out", str(tmp_path / "paper.html")]) == 0
    assert not (tmp_path / "paper_files" / "table11.csv").exists()
    assert (tmp_path / "paper_files" / "table3.csv").exists()


def test_a_missing_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", "a.html"]) == 2
    assert capsys.readouterr().err.startswith("error: command line: runs is missing; set it in the file or as runs=")
