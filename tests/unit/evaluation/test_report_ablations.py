"""Students are compared where their trainings differ in one decision, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("matplotlib")

from evaluation.report.ablations import ablations_section
from evaluation.report.findings import Findings
from evaluation.report.sections import read_findings
from evaluation.report.tables import Table
from evaluation.report.variants import comparisons
from tests.unit.evaluation.report_inputs import write_evaluation, write_training


def write_student(directory: Path, *, score: float, **sections: Any) -> None:
    write_training(directory, **sections)
    write_evaluation(directory / "evaluation", model=directory / "final", scores={"mine": [[score, score]]})


def findings_of(directory: Path) -> Findings:
    return read_findings([directory], families=[], num_samples=0)


def table_of(directory: Path, key: str) -> Table | None:
    return next((table for table in ablations_section(findings_of(directory)).tables if table.key == key), None)


def by_regularization(directory: Path) -> list[dict[str, tuple[float, ...]]]:
    found = comparisons(
        findings_of(directory), setting=lambda config: config.prompt.regularization, free=("prompt.regularization",)
    )
    return [
        {one.setting: tuple(student.score for student in one.students) for one in comparison.variants}
        for comparison in found
    ]


def test_trainings_with_another_difference_are_not_compared(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_student(tmp_path / "b", score=10, prompt={"regularization": "none"}, schedule={"steps": 500})
    assert by_regularization(tmp_path) == []
    write_student(tmp_path / "c", score=30, prompt={"regularization": "none"})
    assert by_regularization(tmp_path) == [{"linear": (20.0,), "none": (30.0,)}]


def test_seeds_and_what_cannot_change_a_result_do_not_part_trainings(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_student(tmp_path / "b", score=22, run={"seed": 7}, schedule={"micro_batch": 2}, engine={"pass_tokens": 99})
    write_student(tmp_path / "c", score=30, prompt={"regularization": "none"}, checkpoints={"every": 7})
    assert by_regularization(tmp_path) == [{"linear": (20.0, 22.0), "none": (30.0,)}]
    table = table_of(tmp_path, "table11")
    assert table is not None and table.columns == ("parameters", "none", "linear")
    none, linear = table.groups[0].rows[0][1:]
    assert (none.value, none.standard_error, none.is_best) == (30.0, None, True)
    assert (linear.value, linear.standard_error, linear.is_best) == (21.0, pytest.approx(1.0), False)
    assert [cell.value for cell in table.groups[1].rows[1]] == ["340M", 24.13, 23.92]


def test_the_best_student_stands_for_a_run_if_it_was_evaluated(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_evaluation(tmp_path / "a" / "of-best", model=tmp_path / "a" / "best", scores={"mine": [[25.0, 25.0]]})
    write_student(tmp_path / "b", score=30, prompt={"regularization": "none"})
    assert by_regularization(tmp_path) == [{"linear": (25.0,), "none": (30.0,)}]


def test_other_methods_are_not_compared(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20, method="gkd")
    write_student(tmp_path / "b", score=30, method="gkd", prompt={"regularization": "none"})
    assert by_regularization(tmp_path) == []
    assert ablations_section(findings_of(tmp_path)).is_empty


def test_figure_4_shows_lengths_and_starts(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_student(tmp_path / "b", score=18, prompt={"length": 5})
    write_student(tmp_path / "c", score=10, prompt={"init": "random"})
    (picture,) = ablations_section(findings_of(tmp_path)).pictures
    assert picture.key == "figure4"
    assert all(f">{word}</text>" in picture.svg for word in ("text", "random", "5", "7"))


def test_table_9_compares_prompt_and_adapters(tmp_path: Path) -> None:
    write_student(tmp_path / "prompt", score=20)
    # Another prompt is not what the table is about.
    write_student(tmp_path / "longer", score=50, prompt={"length": 10})
    assert table_of(tmp_path, "table9") is None
    write_student(
        tmp_path / "lora", score=18, prompt={"regularization": "none", "learning_rate": 1e-3}, teacher_lora={"rank": 4}
    )
    final = tmp_path / "lora" / "final"
    (final / "soft_prompt.safetensors").unlink()
    (final / "teacher_adapter").mkdir()
    save_file({"a": torch.zeros(3, 5)}, final / "teacher_adapter" / "adapter_model.safetensors")
    table = table_of(tmp_path, "table9")
    assert table is not None
    rows = {row[0].value: [cell.value for cell in row[1:]] for row in table.groups[0].rows}
    assert rows == {"prompt tuning": [20.0, 28, 2.0], "LoRA (4/32)": [18.0, 15, 2.0]}
    assert [cell.value for cell in table.groups[1].rows[1]] == ["LoRA (4/32)", 21.84, 1229000, 9.97]


def adaptations(directory: Path) -> dict[str, tuple[float, float | None]]:
    """The report's rows of Table 9: scores and standard errors."""
    table = table_of(directory, "table9")
    assert table is not None
    return {str(row[0].value): (row[1].value, row[1].standard_error) for row in table.groups[0].rows}


def test_table_9_averages_over_nothing_but_seeds(tmp_path: Path) -> None:
    lora = {"teacher_lora": {"rank": 4}}
    plain = {"regularization": "none"}
    write_student(tmp_path / "prompt", score=20)
    # Without adapters their alpha decides nothing, and with them the length of the prompt.
    write_student(tmp_path / "prompt-seed", score=22, run={"seed": 7}, teacher_lora={"alpha": 8.0})
    write_student(tmp_path / "lora", score=10, prompt=plain, **lora)
    write_student(tmp_path / "lora-seed", score=12, prompt=plain | {"length": 3}, run={"seed": 7}, **lora)
    assert adaptations(tmp_path) == {
        "prompt tuning": (21.0, pytest.approx(1.0)), "LoRA (4/32)": (11.0, pytest.approx(1.0))
    }  # fmt: skip
    write_student(tmp_path / "search", score=30, prompt={"learning_rate": 1e-3})
    write_student(tmp_path / "forward", score=40, prompt=plain | {"kd_divergence": "forward_kl"}, **lora)
    assert adaptations(tmp_path) == {
        "prompt tuning (learning_rate=5e-06)": (21.0, pytest.approx(1.0)),
        "prompt tuning (learning_rate=0.001)": (30.0, None),
        "LoRA (4/32, kd_divergence=reverse_kl)": (11.0, pytest.approx(1.0)),
        "LoRA (4/32, kd_divergence=forward_kl)": (40.0, None),
    }


def test_table_12_has_pairs_of_divergences(tmp_path: Path) -> None:
    write_student(tmp_path / "a", score=20)
    write_student(tmp_path / "b", score=22, prompt={"regularization_divergence": "forward_kl"})
    table = table_of(tmp_path, "table12")
    assert table is not None
    assert [[cell.value for cell in row] for row in table.groups[0].rows] == [
        ["reverse KL & reverse KL", 20.0], ["reverse KL & forward KL", 22.0]
    ]  # fmt: skip
    assert [row[0].value for row in table.groups[1].rows][:2] == ["reverse KL & reverse KL", "reverse KL & forward KL"]
    assert table.groups[0].rows[1][1].is_best and table.groups[1].rows[0][1].is_best
