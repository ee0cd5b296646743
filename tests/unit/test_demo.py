"""The demo's bundled data and teacher are those that README describes."""

import json
from pathlib import Path

import pytest

from demo.make_data import DRAWS
from demo.plan import CONTROLS, LABELS, MODELS
from kd.methods import load_config

DEMO = Path(__file__).resolve().parents[2] / "demo"


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "data" / f"{name}.jsonl").read_text().splitlines()]


def keys(name: str) -> set[tuple[str, str]]:
    return {(row["instruction"], row["input"]) for row in rows(name)}


def test_few_rows_have_a_response_and_many_have_none() -> None:
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


def test_configurations_load_and_distil_from_where_the_controls_start() -> None:
    configs = {name: load_config(DEMO / f"{name}.yaml") for name in ("teacher", "student_sft", "promptkd")}
    assert {config.model.dtype for config in configs.values()} == {"fp32"}
    assert configs["promptkd"].model.student == MODELS["start"] == f"{configs['student_sft'].run.dir}/final"
    assert configs["promptkd"].data.train == "demo/data/prompts.jsonl"
    assert set(CONTROLS) < set(LABELS) == set(MODELS)
    for control in CONTROLS.values():
        load_config(DEMO / "student_sft.yaml", overrides=control.overrides)
