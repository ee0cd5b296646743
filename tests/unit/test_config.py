"""Configuration: files and overrides in, one frozen object or one sentence out."""

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from kd.config.load import describe_fields, to_yaml
from kd.errors import UserError
from kd.methods import METHODS, config_type, load_config
from kd.methods.promptkd import PromptSettings
from tests.minimal_config import MINIMAL, load_minimal, write_config

FIELDS = list(describe_fields(config_type(METHODS["promptkd"])))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def error_of(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(file, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_papers_values(file: Path) -> None:
    config = load_config(file)
    prompt = config.section(PromptSettings)
    assert (config.method, prompt.length, prompt.init_text) == ("promptkd", 7, "Suppose you are a student.")
    assert (config.generation.temperature, config.generation.top_p, config.generation.top_k) == (1.0, 1.0, 0)
    assert (config.data.max_prompt_tokens, config.generation.max_new_tokens) == (256, 256)
    assert config.data.max_sequence_tokens == 512


def test_overrides_replace_values_of_the_file_and_are_yaml(tmp_path: Path) -> None:
    path = write_config(tmp_path, MINIMAL | {"run": {"dir": "x", "wandb": "project"}, "schedule": None})
    overrides = ["schedule.steps=500", "run.wandb=null", "model.student_dropout=true", "run.seed=1", "run.seed=2"]
    config = load_config(path, overrides=[*overrides, "prompt.learning_rate=1e-3"])
    assert (config.schedule.steps, config.run.wandb, config.run.seed) == (500, None, 2)
    assert config.model.student_dropout is True
    assert config.section(PromptSettings).learning_rate == 1e-3


def test_a_configuration_is_frozen(file: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(file).schedule.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.step=3", "unknown key schedule.step; did you mean schedule.steps?"),
        ("promt.length=3", "unknown key promt; did you mean prompt?"),
        ("generation.temprature=2", "did you mean generation.temperature?"),
        ("extends=other.yaml", "unknown key extends"),
        ("schedule.steps=many", "schedule.steps is 'many'"),
        ("schedule.steps=0", "schedule.steps is 0; input should be greater than or equal to 1"),
        ("schedule.steps=true", "schedule.steps is True"),
        ("generation.top_p=1.5", "generation.top_p is 1.5"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate is inf"),
        ("model.dtype=int8", "model.dtype is 'int8'"),
        ("prompt.kd_divergence=js", "prompt.kd_divergence is 'js'"),
        ("gkd.beta=1.1", "gkd.beta is 1.1"),
        ("distillm.alpha=1", "distillm.alpha is 1"),
        ("kd.ratio=0", "kd.ratio is 0"),
        ("kd.temperature=0", "kd.temperature is 0"),
        ("student_lora.targets=q_proj", "student_lora.targets is 'q_proj'"),
        ("schedule.steps", "expected section.field=value"),
        ("=3", "expected section.field=value"),
        ("run.dir=[", "not valid YAML"),
        ("data.columns={prompt: a, prompt: b}", "not valid YAML (`prompt` more than once"),
        ("run.dir=2024-99-99", "not valid YAML (month must be in 1..12"),
        ("data.group=kind", "data.group=kind: this version has no data.group"),
    ],
)
def test_an_override_that_cannot_be_meant_is_refused(file: Path, override: str, message: str) -> None:
    assert message in error_of(file, override)


def test_a_value_is_no_section(file: Path) -> None:
    assert "run is a value, not a section" in error_of(file, "run=3", "run.dir=x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [", "not valid YAML"),
        ("run: {dir: x}\nrun: {dir: y}", "not valid YAML (`run` more than once"),
        ("run: {dir: x, seed: 1, seed: 2}", "not valid YAML (`seed` more than once"),
        ("run: {dir: 2024-99-99}", "not valid YAML (month must be in 1..12"),
        ("run: {seed: " + "7" * 5000 + "}", "not valid YAML (Exceeds the limit"),
        ("[" * 5000, "not valid YAML (maximum recursion"),
        ("- a list", "expected a mapping with sections such as model and data, found list"),
        ("", "expected a mapping with sections such as model and data, found NoneType"),
        (yaml.safe_dump({"data": {"train": "x"}, "run": {"dir": "x"}}), "model is missing"),
        (yaml.safe_dump(MINIMAL | {"run": {"seed": 1}}), "run.dir is missing"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str, message: str) -> None:
    assert message in error_of(write_config(tmp_path, content))


def test_merged_keys_may_be_replaced(tmp_path: Path) -> None:
    """YAML's `<<` takes the keys of another mapping, which is not the same as a key that is written twice."""
    content = "model: {student: &s a, teacher: t}\ndata: {train: x}\nrun: {<<: {dir: x, seed: 1}, seed: 2}\n"
    assert load_config(write_config(tmp_path, content)).run.seed == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.yaml: cannot be read (No such file or directory)" in error_of(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=null"], "exactly one of data.train (rows) and data.responses"),
        (["data.train=x", "data.responses=y.jsonl"], "exactly one of data.train (rows) and data.responses"),
        (["data.max_prompt_tokens=512"], "leaves no room for a response"),
        (["generation.max_new_tokens=300"], "is 556, more than data.max_sequence_tokens=512"),
        (["schedule.steps=99"], "schedule.warmup_steps=100 is more than schedule.steps=99"),
        (["generation.layout=tensor_parallel"], "needs generation.tensor_parallel_size of at least 2"),
        (
            ["generation.layout=gathered", "generation.tensor_parallel_size=2"],
            "generation.tensor_parallel_size=2 has no effect with generation.layout=gathered",
        ),
        (["validation.metric=accuracy"], "validation.metric=accuracy needs validation.answer_pattern"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(file: Path, overrides: list[str], message: str) -> None:
    assert message in error_of(file, *overrides)


def test_contradictions_are_about_what_the_run_does(tmp_path: Path) -> None:
    # Without rollouts, their length is free.
    for method, overrides in (("promptkd", ["data.train=null", "data.responses=y.jsonl"]), ("sft", [])):
        assert load_minimal(tmp_path, "generation.max_new_tokens=300", *overrides, method=method)
    # The number of steps is known only with the data.
    assert load_minimal(tmp_path, "schedule.epochs=2").schedule.warmup_steps == 100


STEPS, EPOCHS = "schedule: {steps: 500}\n", "schedule: {epochs: 4}\n"
TRAIN, RESPONSES = "data: {train: x}\n", "data: {responses: y}\n"


@pytest.mark.parametrize(
    ("base", "extending", "overrides", "expected"),
    [
        pytest.param(EPOCHS, "", ["schedule.steps=300"], (300, None), id="override over file"),
        pytest.param(STEPS, "", ["schedule.epochs=2"], (1000, 2), id="override over file, reversed"),
        pytest.param(EPOCHS, STEPS, [], (500, None), id="file over extended file"),
        pytest.param(STEPS, EPOCHS, [], (1000, 4), id="file over extended file, reversed"),
        pytest.param(EPOCHS, STEPS, ["schedule.epochs=2"], (1000, 2), id="override over both files"),
        pytest.param(EPOCHS, "schedule: {warmup_steps: 3}\n", [], (1000, 4), id="another field of the section"),
        pytest.param(EPOCHS, "", ["schedule.steps=300", "schedule.epochs=2"], (300, 2), id="both in one layer"),
        pytest.param(EPOCHS, "", ["schedule.epochs=null"], (1000, None), id="null"),
    ],
)
def test_of_steps_and_epochs_the_later_layer_wins(
    base: str, extending: str, overrides: list[str], expected: tuple[int, float | None], tmp_path: Path
) -> None:
    write_config(tmp_path, yaml.safe_dump(MINIMAL) + base, name="base.yaml")
    path = write_config(tmp_path, "extends: base.yaml\n" + extending)
    schedule = load_config(path, overrides=overrides).schedule
    assert (schedule.steps, schedule.epochs) == expected


@pytest.mark.parametrize(
    ("method", "file", "override", "expected"),
    [
        ("gkd", TRAIN, "data.responses=y", (None, "y")),
        ("gkd", RESPONSES, "data.train=x", ("x", None)),
        # Its prompts and its responses: the teacher's responses are written to the rows of data.train.
        ("seqkd", TRAIN, "data.responses=y", ("x", "y")),
        ("seqkd", RESPONSES, "data.train=x", ("x", "y")),
    ],
)
def test_the_later_source_of_responses_wins_except_for_seqkd(
    method: str, file: str, override: str, expected: tuple[str | None, str | None], tmp_path: Path
) -> None:
    without_data = {name: section for name, section in MINIMAL.items() if name != "data"}
    path = write_config(tmp_path, yaml.safe_dump(without_data | {"method": method}) + file)
    data = load_config(path, overrides=[override]).data
    assert (data.train, data.responses) == expected


def test_old_names_still_work_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old: dict[str, Any] = {"engine": {"pass_tokens": 99, "gather": "layer"}, "cluster": {"nodes": 2}}
    config = load_config(write_config(tmp_path, MINIMAL | old))
    assert (config.engine.inference_batch_tokens, config.engine.gather) == (99, "layer")
    assert capsys.readouterr().err.splitlines() == [
        "engine.pass_tokens is called engine.inference_batch_tokens now; the old name still works in this version",
        "cluster has no effect in this version and is ignored; remove it",
    ]
    overrides = ["engine.pass_tokens=7", "cluster.time=01:30:00"]
    assert load_config(tmp_path / "run.yaml", overrides=overrides).engine.inference_batch_tokens == 7
    assert "group" not in asdict(load_config(write_config(tmp_path, MINIMAL | {"data": {"train": "x", "group": None}})))


def test_the_written_configuration_reads_as_the_same(file: Path, tmp_path: Path) -> None:
    overrides = ["schedule.epochs=0.5", "run.max_hours=3", "prompt.init_text='Ein Schüler: “ja”'", "run.wandb=01:30:00"]
    config = load_config(file, overrides=overrides)
    assert config.run.wandb == "01:30:00"
    assert load_config(write_config(tmp_path, to_yaml(config), name="again.yaml")) == config


def test_every_field_has_help_and_its_true_default(file: Path) -> None:
    values = asdict(load_config(file))
    named = {name for name, section in values.items() for name in ([name] if not isinstance(section, dict) else [])}
    named |= {f"{name}.{entry}" for name, part in values.items() if isinstance(part, dict) for entry in part}
    assert {name for name, _, _ in FIELDS} == named
    for name, default, text in FIELDS:
        section, _, entry = name.partition(".")
        assert text, name
        if default != "required" and name not in ("model.teacher", "data.train"):
            value = values[section][entry] if entry else values[section]
            assert yaml.safe_load(default) == value, name


def test_a_file_extends_others_over_any_number_of_steps(tmp_path: Path) -> None:
    base = MINIMAL | {"schedule": {"steps": 500, "warmup_steps": 7}}
    write_config(tmp_path, base, name="base.yaml")
    middle = "extends: ../base.yaml\nschedule: {steps: 300}\nmodel: {teacher: other}\n"
    write_config(tmp_path, middle, name="family/middle.yaml")
    leaf = "extends: middle.yaml\nmodel: {student: mine}\nrun: {dir: runs/leaf}\n"
    config = load_config(write_config(tmp_path, leaf, name="family/leaf.yaml"), overrides=["schedule.warmup_steps=9"])
    assert (config.model.student, config.model.teacher) == ("mine", "other")
    assert (config.schedule.steps, config.schedule.warmup_steps) == (300, 9)
    assert (config.data.train, config.run.dir) == ("rows.jsonl", "runs/leaf")


def test_null_removes_a_value_and_an_empty_section_nothing(tmp_path: Path) -> None:
    write_config(tmp_path, MINIMAL | {"schedule": {"steps": 500}}, name="base.yaml")
    path = write_config(tmp_path, "extends: base.yaml\nmethod: sft\nmodel: {teacher: null}\nschedule:\n")
    config = load_config(path)
    assert (config.model.teacher, config.schedule.steps) == (None, 500)


def test_a_missing_base_is_named_with_the_file_that_extends_it(tmp_path: Path) -> None:
    path = write_config(tmp_path, "extends: none.yaml\n")
    missing = f"{path}: extends {tmp_path / 'none.yaml'}, which cannot be read (No such file or directory)"
    assert error_of(path).startswith(missing)


@pytest.mark.parametrize("value", ["[a.yaml, b.yaml]", "3", "{file: a.yaml}"])
def test_extends_names_one_file(tmp_path: Path, value: str) -> None:
    path = write_config(tmp_path, f"extends: {value}\n")
    assert "expected the path of one YAML file, relative to this one" in error_of(path)


def test_files_that_extend_each_other_are_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, "extends: b.yaml\n", name="a.yaml")
    write_config(tmp_path, "extends: sub/../a.yaml\n", name="b.yaml")
    assert "extends sub/../a.yaml is circular" in error_of(path)
    assert "is circular" in error_of(write_config(tmp_path, "extends: self.yaml\n", name="self.yaml"))
