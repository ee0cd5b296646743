"""What the configuration refuses about soft prompts and adapters."""

from pathlib import Path

import pytest
import yaml

from kd.config.load import read_config
from kd.errors import UserError

MINIMAL = {"model": {"student": "s", "teacher": "t"}, "data": {"train": "rows.jsonl"}, "run": {"dir": "runs/x"}}
LORA = ["teacher_lora.rank=4", "prompt.regularization=none"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=gkd", *LORA], "method gkd leaves its teacher as it is; set teacher_lora.rank=0"),
        (LORA[:1], "L_reg has no place beside it (Table 9); set prompt.regularization=none"),
        (["method=gkd", "data.group=kind"], "only method promptkd without teacher_lora has soft prompts"),
        ([*LORA, "data.group=kind"], "only method promptkd without teacher_lora has soft prompts"),
        (
            ["prompt.student_fraction=0.5", "data.train=null", "data.responses=y.jsonl"],
            "data.responses takes the place of both",
        ),
        (["student_lora.targets=q_proj"], "student_lora.targets is 'q_proj'"),
    ],
)
def test_what_the_run_has_not_cannot_be_set(file: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config(file, overrides=overrides)
    assert message in str(caught.value)


def test_only_a_tuned_prompt_takes_slots(file: Path) -> None:
    assert read_config(file).tunes_prompt
    assert not read_config(file, overrides=LORA).tunes_prompt
    assert not read_config(file, overrides=["method=gkd"]).tunes_prompt


def test_the_datas_responses_are_needed_where_the_prompt_is_tuned_on_them(file: Path) -> None:
    assert not read_config(file).needs_outputs
    assert read_config(file, overrides=["prompt.student_fraction=0.5"]).needs_outputs
