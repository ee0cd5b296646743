"""The commands for what is missing are ones that their programs understand."""

import shlex
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from evaluation import options
from evaluation.exposure_bias import __main__ as exposure_bias
from evaluation.judge import __main__ as judge
from evaluation.report.missing import Missing, missing_parts
from evaluation.report.sections import read_findings
from evaluation.student_friendliness import __main__ as student_friendliness
from kd.config.load import read_config
from tests.unit.evaluation.report_inputs import write_evaluation, write_training


def missing(*directories: Path, keys: set[str]) -> dict[str, list[str]]:
    findings = read_findings(directories, families=[], num_samples=0)
    parts: list[Missing] = list(missing_parts(findings, keys=keys))
    return {part.what.split(",")[0]: shlex.split(part.command) for part in parts}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_training(tmp_path / "runs" / "a b", data={"train": str(tmp_path / "t.jsonl")})


def test_commands_for_measurements_can_be_typed(run: Path) -> None:
    commands = missing(run, keys={"trainings"})
    evaluation = options.parse_options(commands["Table 1 and Figure 1"][2:])
    assert evaluation.model == f"{run}/final"
    assert (evaluation.max_prompt_tokens, evaluation.max_new_tokens) == (100, 32)
    curves = exposure_bias.parse_options(commands["Figure 3(a)"][3:])
    assert curves.teacher == "somewhere/teacher" and curves.students[0].path == f"{run}/final"
    assert "--run" in commands["Figure 3(b)"]
    assert student_friendliness.parse_options(commands["Table 4"][3:]).final == f"{run}/final"
    assert judge.parse_options(commands["Table 6"][3:]).evaluations[0].directory == run / "evaluation"
    assert "training curves" not in commands


def test_commands_for_measurements_treat_rows_as_the_training_did(tmp_path: Path) -> None:
    data = {"train": "t.jsonl", "template": "my own.jinja", "overlong": "truncate"}
    commands = missing(write_training(tmp_path / "a", data=data), keys=set())
    evaluation = options.parse_options(commands["Table 1 and Figure 1"][2:])
    assert (evaluation.template, evaluation.overlong) == ("my own.jinja", "truncate")
    curves = exposure_bias.parse_options(commands["Figure 3(a)"][3:])
    assert curves.analysis.template == "my own.jinja"
    words = commands["Figure 3(b)"]
    assert words[words.index("--template") + 1] == "my own.jinja"


def test_commands_do_not_repeat_defaults(run: Path) -> None:
    words = missing(run, keys=set())["Table 1 and Figure 1"]
    assert not {"--template", "--overlong"} & set(words)


@pytest.mark.parametrize("what", ["Figure 4", "Table 9", "Table 11", "Table 12"])
def test_commands_for_trainings_change_one_decision(run: Path, what: str) -> None:
    words = missing(run, keys=set())[what]
    changed = read_config(words[words.index("--config") + 1], overrides=words[words.index("--config") + 2 :])
    before = read_config(run / "config.yaml")
    assert changed.run.dir != before.run.dir
    assert (changed.prompt, changed.teacher_lora) != (before.prompt, before.teacher_lora)
    assert changed.model == before.model and changed.schedule == before.schedule


def test_only_what_is_not_there_is_missing(run: Path) -> None:
    everything = set(missing(run, keys=set()))
    assert set(missing(run, keys={"figure4-2", "table3", "table1-paper", "table11"})) == everything - {
        "Figure 4", "Table 3", "Table 11", "Table 1 and Figure 1"
    } | {"Figure 1"}  # fmt: skip


def test_without_a_training_there_are_places_to_fill_in(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "e", model="m", scores={"x": [[1.0, 2.0]]})
    commands = missing(tmp_path, keys=set())
    assert "runs/NAME" in commands["Table 4"] and "FILE" in commands["Table 12"]
    assert f"NAME={tmp_path / 'e'}" in commands["Table 6"]
    write_training(tmp_path / "sft", method="sft", model={"teacher": None})
    # No run of PromptKD: its commands have none to name.
    assert "runs/NAME" in missing(tmp_path, keys=set())["Table 4"]
