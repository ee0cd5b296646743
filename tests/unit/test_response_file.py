"""The file of the teacher's responses: what it may be resumed with, without a model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kd.data.encoding import Example
from kd.errors import UserError
from kd.train.generate import ResponseFile
from tests.minimal_config import load_minimal


def examples(*prompts: str) -> list[Example]:
    return [
        Example(
            row_id=row_id,
            prompt=prompt,
            prompt_ids=np.array([1], dtype=np.int32),
            response_ids=None,
            references=(),
            source=f"rows.jsonl:{row_id + 1}",
        )
        for row_id, prompt in enumerate(prompts)
    ]


def response(sample: int = 0) -> dict[str, Any]:
    return {"prompt": "a", "response": "b", "ended": True, "sample": sample, "source": "rows.jsonl:1"}


def begin(directory: Path, *overrides: str, rows: Sequence[Example]) -> ResponseFile:
    config = load_minimal(directory, "data.train=rows.jsonl", *overrides, method="seqkd")
    file = ResponseFile(directory / "teacher.jsonl", config=config, rank=0)
    file.begin(rows)
    return file


@pytest.mark.parametrize(
    ("override", "prompts", "message"),
    [
        ("run.seed=42", ["a", "c"], "was started with other prompts, so the content of data.train or of the template"),
        ("run.seed=42", ["b", "a"], "was started with other prompts"),
        ("run.seed=42", ["a"], "was started with other prompts"),
        (
            "data.columns={prompt: q}",
            ["a", "b"],
            "was started with data.columns=None, now it is {'prompt': 'q'}",
        ),
        ("data.template_options={a: 2024-07-26}", ["a", "b"], "was started with data.template_options=None, now it is"),
        ("data.turns=all", ["a", "b"], "was started with data.turns=last, now it is all"),
    ],
)
def test_other_rows_or_settings_are_refused(override: str, prompts: list[str], message: str, tmp_path: Path) -> None:
    begin(tmp_path, rows=examples("a", "b"))
    begin(tmp_path, rows=examples("a", "b"))
    with pytest.raises(UserError) as caught:
        begin(tmp_path, override, rows=examples(*prompts))
    assert message in str(caught.value)


def test_a_template_option_that_is_a_date_is_the_same_when_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        begin(tmp_path, "data.template=chat", "data.template_options={a: 2024-07-26}", rows=examples("a"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read (Expecting"), ("[]", "expected a JSON object; restore it, or delete")],
)
def test_broken_settings_are_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "teacher.jsonl.settings.json").write_text(content)
    with pytest.raises(UserError) as caught:
        begin(tmp_path, rows=examples("a"))
    assert message in str(caught.value)


def test_a_torn_line_is_made_again(tmp_path: Path) -> None:
    file = begin(tmp_path, rows=examples("a"))
    file.append({(0, 0): response(0), (1, 0): response(0)})
    part = tmp_path / "teacher.jsonl.rank-0.partial"
    part.write_bytes(part.read_bytes()[:-5])
    assert file.read_parts() == {(0, 0): response(0)}
    file.append({(1, 0): response(0)})
    assert set(file.read_parts()) == {(0, 0), (1, 0)}


@pytest.mark.parametrize("line", [{}, {"row": 1}, {"row": "1", **response()}, {"row": 1, **response(), "response": 3}])
def test_a_line_of_another_kind_is_refused(line: dict[str, Any], tmp_path: Path) -> None:
    file = begin(tmp_path, rows=examples("a"))
    file.append({(0, 0): response()})
    with (tmp_path / "teacher.jsonl.rank-0.partial").open("a") as part:
        part.write(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="teacher.jsonl.rank-0.partial:2: expected a response with `row` and `sample`"):
        file.read_parts()
