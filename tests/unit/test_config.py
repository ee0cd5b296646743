"""Configuration: a file and overrides in, one frozen object or one sentence out."""

import dataclasses
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from kd.config.fields import DivergenceName, MethodName
from kd.config.load import describe_fields, read_config, to_yaml
from kd.config.schema import Config
from kd.errors import UserError
from kd.losses.divergences import DIVERGENCES

MINIMAL: dict[str, Any] = {
    "model": {"student": "s", "teacher": "t"},
    "data": {"train": "rows.jsonl"},
    "run": {"dir": "runs/x"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path, MINIMAL)


def write(directory: Path, values: object) -> Path:
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def error_of(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        read_config(file, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_a_file_leaves_out_has_the_papers_value(file: Path) -> None:
    config = read_config(file)
    assert config.method == "promptkd"
    assert (config.prompt.length, config.prompt.init_text) == (7, "Suppose you are a student.")
    assert (config.generation.temperature, config.generation.top_p, config.generation.top_k) == (1.0, 1.0, 0)
    assert (config.data.max_prompt_tokens, config.generation.max_new_tokens) == (256, 256)
    assert config.data.max_sequence_tokens == 512


def test_overrides_win_over_the_file_and_are_yaml(file: Path) -> None:
    config = read_config(
        file,
        overrides=["schedule.steps=500", "prompt.learning_rate=1e-3", "run.wandb=null", "model.student_dropout=true"],
    )
    assert config.schedule.steps == 500
    assert config.prompt.learning_rate == 1e-3
    assert config.run.wandb is None
    assert config.model.student_dropout is True


def test_an_override_fills_a_section_that_the_file_leaves_empty(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, MINIMAL | {"schedule": None}), overrides=["schedule.steps=200"])
    assert config.schedule.steps == 200


def test_the_last_override_of_a_field_counts(file: Path) -> None:
    assert read_config(file, overrides=["run.seed=1", "run.seed=2"]).run.seed == 2


def test_a_configuration_is_frozen(file: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_config(file).schedule.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.step=3", "unknown key schedule.step; did you mean schedule.steps?"),
        ("promt.length=3", "unknown key promt; did you mean prompt?"),
        ("generation.temprature=2", "did you mean generation.temperature?"),
        ("schedule.steps=many", "schedule.steps is 'many'"),
        ("schedule.steps=0", "schedule.steps is 0; input should be greater than or equal to 1"),
        ("generation.top_p=1.5", "generation.top_p is 1.5"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate is inf"),
        ("model.dtype=int8", "model.dtype is 'int8'"),
        ("method=ppo", "method is 'ppo'"),
        ("prompt.kd_divergence=js", "prompt.kd_divergence is 'js'"),
        ("gkd.beta=1.1", "gkd.beta is 1.1"),
        ("distillm.alpha=1", "distillm.alpha is 1"),
        ("kd.ratio=0", "kd.ratio is 0"),
        ("kd.temperature=0", "kd.temperature is 0"),
        ("schedule.steps", "expected section.field=value"),
        ("=3", "expected section.field=value"),
        ("run.dir=[", "not valid YAML"),
        ("method.steps=3", "method is a value, not a section"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, override: str, message: str) -> None:
    assert message in error_of(write(tmp_path, MINIMAL | {"method": "promptkd"}), override)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: [", "not valid YAML"),
        ("- a list", "expected a mapping with sections such as model and data, found list"),
        ("", "expected a mapping with sections such as model and data, found NoneType"),
        (yaml.safe_dump({"data": {"train": "x"}, "run": {"dir": "x"}}), "model is missing"),
        (yaml.safe_dump(MINIMAL | {"run": {"seed": 1}}), "run.dir is missing"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content, encoding="utf-8")
    assert message in error_of(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    message = error_of(tmp_path / "none.yaml")
    assert "none.yaml" in message
    assert "No such file" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=sft"], "sft trains model.student alone; set model.teacher=null"),
        (["model.teacher=null"], "method promptkd needs model.teacher"),
        (["data.train=null"], "exactly one of data.train (rows) and data.responses"),
        (["data.responses=y.jsonl"], "exactly one of data.train (rows) and data.responses"),
        (["data.max_prompt_tokens=512"], "leaves no room for a response"),
        (["generation.max_new_tokens=300"], "is 556, more than data.max_sequence_tokens=512"),
        (["schedule.steps=99"], "schedule.warmup_steps=100 is more than schedule.steps=99"),
        (["generation.layout=tensor_parallel"], "needs generation.tensor_parallel_size of at least 2"),
        (
            ["generation.layout=gathered", "generation.tensor_parallel_size=2"],
            "generation.tensor_parallel_size=2 has no effect with generation.layout=gathered",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(file: Path, overrides: list[str], message: str) -> None:
    assert message in error_of(file, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        # Nothing is sampled for training, so the length of samples is free.
        ["generation.max_new_tokens=300", "data.train=null", "data.responses=y.jsonl"],
        ["generation.max_new_tokens=300", "method=sft", "model.teacher=null"],
        # The number of steps is known only with the data.
        ["schedule.steps=99", "schedule.epochs=2"],
    ],
)
def test_contradictions_are_about_what_the_run_does(file: Path, overrides: list[str]) -> None:
    config = read_config(file, overrides=overrides)
    assert not config.samples_responses or config.schedule.epochs == 2


def test_only_on_policy_methods_sample_responses(file: Path) -> None:
    assert read_config(file).samples_responses
    assert not read_config(file, overrides=["data.train=null", "data.responses=y.jsonl"]).samples_responses
    assert not read_config(file, overrides=["method=sft", "model.teacher=null"]).samples_responses


@pytest.mark.parametrize(
    ("overrides", "samples", "needs_outputs"),
    [
        (["method=kd"], False, True),
        (["method=seqkd", "data.responses=y.jsonl"], False, True),
        (["method=gkd"], True, False),
        (["method=gkd", "gkd.student_fraction=0.5"], True, True),
        (["method=gkd", "gkd.student_fraction=0"], False, True),
        (["method=gkd", "gkd.sft_weight=0.1"], True, True),
        (["method=gkd", "data.train=null", "data.responses=y.jsonl"], False, True),
        (["method=distillm", "data.validation=v.jsonl"], True, True),
        (["method=distillm", "data.train=null", "data.responses=y.jsonl"], False, True),
        (["method=promptkd", "gkd.student_fraction=0.5"], True, False),
    ],
)
def test_methods_say_what_they_sample_and_what_they_need(
    file: Path, overrides: list[str], samples: bool, needs_outputs: bool
) -> None:
    config = read_config(file, overrides=overrides)
    assert (config.samples_responses, config.needs_outputs) == (samples, needs_outputs)


def test_the_written_configuration_reads_as_the_same(file: Path, tmp_path: Path) -> None:
    overrides = [
        "schedule.epochs=0.5",
        "run.max_hours=3",
        "prompt.init_text='Ein Schüler: “ja”'",
        "cluster.time=01:30:00",
    ]
    config = read_config(file, overrides=overrides)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert read_config(again) == config


def test_every_field_says_what_it_means() -> None:
    described = {name: (default, meaning) for name, default, meaning in describe_fields()}
    for section in fields(Config):
        entries = fields(section.type) if is_dataclass(section.type) else [None]
        for entry in entries:
            name = section.name if entry is None else f"{section.name}.{entry.name}"
            default, meaning = described.pop(name)
            assert meaning
            assert default
    assert described == {}


def test_described_defaults_are_the_defaults(file: Path) -> None:
    values = asdict(read_config(file))
    for name, default, _ in describe_fields():
        section, _, entry = name.partition(".")
        if default != "required" and name not in ("model.teacher", "data.train"):
            assert yaml.safe_load(default) == (values[section][entry] if entry else values[section]), name


def test_names_in_the_configuration_are_names_in_the_code() -> None:
    assert set(get_args(DivergenceName)) == set(DIVERGENCES)
    methods = Path(__file__).parents[2] / "kd" / "methods"
    assert all((methods / f"{name}.py").is_file() for name in get_args(MethodName))
