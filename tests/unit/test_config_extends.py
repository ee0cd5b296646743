"""A configuration that starts from another file and says only what is different."""

from pathlib import Path

import pytest

from kd.config.load import read_config
from kd.errors import UserError

BASE = """\
model: {student: s, teacher: t}
data: {train: rows.jsonl}
schedule: {steps: 500, warmup_steps: 7}
run: {dir: runs/base}
"""


def write(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_says_what_is_different_over_any_number_of_steps(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    write(tmp_path, "family/middle.yaml", "extends: ../base.yaml\nschedule: {steps: 300}\nmodel: {teacher: other}\n")
    path = write(tmp_path, "family/leaf.yaml", "extends: middle.yaml\nmodel: {student: mine}\nrun: {dir: runs/leaf}\n")
    config = read_config(path, overrides=["schedule.warmup_steps=9"])
    assert (config.model.student, config.model.teacher) == ("mine", "other")
    assert (config.schedule.steps, config.schedule.warmup_steps) == (300, 9)
    assert (config.data.train, config.run.dir) == ("rows.jsonl", "runs/leaf")


def test_null_takes_a_value_away_and_an_empty_section_nothing(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", BASE)
    path = write(tmp_path, "leaf.yaml", "extends: base.yaml\nmethod: sft\nmodel: {teacher: null}\nschedule:\n")
    config = read_config(path)
    assert config.model.teacher is None
    assert config.schedule.steps == 500


def test_a_missing_base_is_named_with_the_file_that_asks_for_it(tmp_path: Path) -> None:
    path = write(tmp_path, "leaf.yaml", "extends: none.yaml\n")
    assert error_of(path) == (
        f"{path}: extends {tmp_path / 'none.yaml'}, which cannot be read (No such file or directory); give the path"
        " of a YAML file"
    )


@pytest.mark.parametrize("value", ["[a.yaml, b.yaml]", "3", "{file: a.yaml}"])
def test_extends_names_one_file(tmp_path: Path, value: str) -> None:
    path = write(tmp_path, "leaf.yaml", f"extends: {value}\n")
    assert "expected the path of one YAML file, relative to this one" in error_of(path)


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: sub/../a.yaml\n")
    assert "extends sub/../a.yaml leads back to itself" in error_of(path)
    assert "leads back to itself" in error_of(write(tmp_path, "self.yaml", "extends: self.yaml\n"))


def test_extends_is_no_key_of_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, "base.yaml", BASE)
    with pytest.raises(UserError, match="unknown key extends"):
        read_config(path, overrides=["extends=other.yaml"])
