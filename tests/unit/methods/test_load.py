"""The list of methods, methods from elsewhere, and what each of them needs."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from kd.config.fields import Count, Section, option
from kd.config.load import describe_fields
from kd.config.schema import Config
from kd.errors import UserError
from kd.methods import METHODS, config_type, find_method, load_config
from kd.methods.base import Method, Needs
from tests.minimal_config import METHOD_OVERRIDES, load_minimal, write_config

HERE = __name__


@dataclass(frozen=True, kw_only=True)
class OwnSettings(Section):
    window: Count = option(3, help="number of steps")


class Own(Method):
    """A method from outside of kd, which needs nothing but the data."""

    sections = {"own": OwnSettings}

    @classmethod
    def needs(cls, config: Config) -> Needs:
        return Needs(teacher=False, rollouts=False, references=config.section(OwnSettings).window > 3)

    def step(self, batch: object) -> None:
        raise NotImplementedError


class TakesASectionOfAnother(Own):
    sections = {"prompt": OwnSettings}


class TakesACommonSection(Own):
    sections = {"data": OwnSettings}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_complete(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    assert find_method(name) is method
    assert method.__doc__
    assert isinstance(method.needs(load_minimal(tmp_path, method=name)), Needs)


def test_a_section_belongs_to_one_method() -> None:
    sections = [name for method in METHODS.values() for name in method.sections]
    assert len(set(sections)) == len(sections)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("promtkd", "method is 'promtkd'; did you mean promptkd? (or package.module:Class for your own)"),
        ("ppo", "method is 'ppo'; expected one of promptkd, sft"),
        ("nowhere.module:Class", "method nowhere.module:Class: cannot be imported (No module named 'nowhere')"),
        (f"{HERE}:Missing", "cannot be imported"),
        (f"{HERE}:Path", "expected a subclass of kd.methods.base.Method, found <class 'pathlib.Path'>"),
        (f"{HERE}:TakesASectionOfAnother", "TakesASectionOfAnother: the section prompt exists already"),
        (f"{HERE}:TakesACommonSection", "TakesACommonSection: the section data exists already"),
    ],
)
def test_what_is_no_method_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_minimal(tmp_path, method=name)
    assert message in str(caught.value)


def test_a_method_from_elsewhere_brings_its_section(tmp_path: Path) -> None:
    config = load_minimal(tmp_path, "own.window=5", "model.teacher=null", method=f"{HERE}:Own")
    assert config.section(OwnSettings).window == 5
    assert Own.needs(config).references
    assert find_method(config.method) is Own
    assert ("own.window", "3", "number of steps") in describe_fields(config_type(Own))
    with pytest.raises(UserError, match="own.window is 0"):
        load_minimal(tmp_path, "own.window=0", method=f"{HERE}:Own")
    with pytest.raises(UserError, match="unknown key own"):
        load_minimal(tmp_path, "own.window=5")


NEEDS = [
    # Method, overrides; whether it needs a teacher, rollouts, references.
    ("promptkd", [], (True, True, False)),
    ("promptkd", ["prompt.student_fraction=0.5"], (True, True, True)),
    ("promptkd", ["gkd.student_fraction=0.5"], (True, True, False)),
    ("sft", [], (False, False, True)),
    ("kd", [], (True, False, True)),
    ("seqkd", [], (True, False, True)),
    ("seqkd", ["seqkd.ratio=0"], (False, False, True)),
    ("gkd", [], (True, True, False)),
    ("gkd", ["gkd.student_fraction=0.5"], (True, True, True)),
    ("gkd", ["gkd.student_fraction=0"], (True, False, True)),
    ("gkd", ["gkd.sft_weight=0.1"], (True, True, True)),
    ("minillm", [], (True, True, False)),
    ("distillm", [], (True, True, True)),
]


@pytest.mark.parametrize(("method", "overrides", "needs"), NEEDS)
def test_needs_follow_the_settings(
    method: str, overrides: list[str], needs: tuple[bool, bool, bool], tmp_path: Path
) -> None:
    found = METHODS[method].needs(load_minimal(tmp_path, *overrides, method=method))
    assert (found.teacher, found.rollouts, found.references) == needs


LORA = ["teacher_lora.rank=4", "prompt.regularization=none"]
FIXED = ["data.train=null", "data.responses=y.jsonl"]


@pytest.mark.parametrize(
    ("method", "overrides", "message"),
    [
        ("sft", ["model.teacher=t"], "sft trains model.student alone; set model.teacher=null"),
        ("promptkd", ["model.teacher=null"], "method promptkd needs model.teacher"),
        ("seqkd", ["model.teacher=null", "seqkd.ratio=0"], "method seqkd needs model.teacher"),
        ("seqkd", ["data.responses=null"], "set data.responses, the file that `promptkd generate` writes"),
        ("gkd", LORA, "method gkd has no such adapters; set teacher_lora.rank=0, or method=promptkd"),
        ("promptkd", LORA[:1], "leaves L_reg without a purpose (Table 9); set prompt.regularization=none"),
        ("promptkd", ["prompt.student_fraction=0.5", *FIXED], "prompt.student_fraction=0.5 mixes"),
        ("gkd", ["gkd.student_fraction=0.5", *FIXED], "gkd.student_fraction=0.5 mixes"),
        ("gkd", ["gkd.sft_weight=1", *FIXED], "gkd.sft_weight applies to the responses of data.train"),
        ("minillm", ["minillm.corpus=null"], "method minillm needs minillm.corpus"),
        ("minillm", ["minillm.rollouts=100"], "is not a multiple of schedule.global_batch=64"),
        ("minillm", ["generation.top_p=0.9"], "set generation.temperature=1"),
        ("distillm", ["data.validation=null"], "follows the validation loss; set data.validation"),
        ("distillm", ["distillm.buffer_rows=63"], "is less than schedule.global_batch=64"),
    ],
)
def test_settings_that_a_method_cannot_train_with_are_refused(
    method: str, overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load_minimal(tmp_path, *overrides, method=method)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_only_a_tuned_prompt_takes_slots(tmp_path: Path) -> None:
    for method, overrides, slots in (("promptkd", ["prompt.length=9"], 9), ("promptkd", LORA, 0), ("gkd", [], 0)):
        assert METHODS[method].teacher_slots(load_minimal(tmp_path, *overrides, method=method)) == slots


def test_a_file_may_have_the_sections_of_several_methods(tmp_path: Path) -> None:
    path = write_config(tmp_path, "extends: run.yaml\nkd: {ratio: 0.25}\ngkd: {beta: 0.1}\n", name="both.yaml")
    write_config(tmp_path)
    for method in ("kd", "gkd"):
        config = load_config(path, overrides=[f"method={method}", *METHOD_OVERRIDES.get(method, [])])
        assert (config.kd.ratio, config.gkd.beta) == (0.25, 0.1)  # type: ignore[attr-defined]
