"""The demo's bundled data and teacher are what README says."""

import json
from pathlib import Path

import pytest

from demo.make_data import DRAWS
from demo.plan import CONTROLS, LABELS, MODELS
from kd.config.load import read_config

DEMO = Path(__file__).resolve().parents[2] / "demo"


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "data" / f"{name}.jsonl").read_text().splitlines()]


def keys(name: str) -> set[tuple[str, str]]:
    return {(row["instruction"], row["input"]) for row in rows(name)}


def test_few_rows_have_an_answer_and_many_have_none() -> None:
    assert len(DRAWS) >= 12
    assert len(rows("labelled")) == 150 and all(row["output"] for row in rows("labelled"))
    assert len(rows("prompts")) == 4000 and not any("output" in row for row in rows("prompts"))
    assert len(rows("teacher")) >= 3000
    assert len(rows("test")) == 360


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_held_out_rows_are_nowhere_else(held_out: str) -> None:
    assert len(keys(held_out)) == len(rows(held_out))
    others = {"labelled", "prompts", "teacher", "validation", "test"} - {held_out}
    for other in others:
        assert not keys(held_out) & keys(other), other


def test_the_shipped_teacher_is_small() -> None:
    assert sum(path.stat().st_size for path in (DEMO / "teacher").iterdir()) <= 8e6


@pytest.mark.parametrize("name", ["teacher", "student_sft", "promptkd"])
def test_configurations_load(name: str) -> None:
    assert read_config(DEMO / f"{name}.yaml").model.dtype == "fp32"


def test_the_student_is_distilled_from_what_the_controls_start_from() -> None:
    config = read_config(DEMO / "promptkd.yaml")
    assert config.model.student == MODELS["start"]
    assert config.data.train == "demo/data/prompts.jsonl"
    assert set(CONTROLS) < set(LABELS) == set(MODELS)
    for control in CONTROLS.values():
        read_config(DEMO / "student_sft.yaml", overrides=control.overrides)
