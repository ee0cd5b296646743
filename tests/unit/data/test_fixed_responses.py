import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from kd.config.schema import DataConfig
from kd.data.encoding import read_responses
from kd.errors import UserError

LIMITS = DataConfig(responses="responses.jsonl", max_prompt_tokens=5, max_sequence_tokens=7)


def test_fixed_responses(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = write_lines(
        tmp_path,
        [
            {"prompt": "12", "response": "34"},
            {"prompt": "123456", "response": "7"},
            {"prompt": "1\n", "response": "23456789"},
        ],
    )
    encoded = read_responses(str(path), tokenizer=tokenizer, data=LIMITS)
    assert [(row.row_id, row.prompt, row.source) for row in encoded.examples] == [
        (0, "12", f"{path}:1"),
        (2, "1\n", f"{path}:3"),
    ]
    assert [tokenizer.decode(row.prompt_ids) for row in encoded.examples] == ["12", "1\n"]
    assert [tokenizer.decode(row.with_response().response_ids) for row in encoded.examples] == [
        f"34{tokenizer.eos_token}",
        "23456",
    ]
    assert encoded.examples[0].references == ("34",)
    assert encoded.report.dropped == (f"{path}:2",)
    assert encoded.report.truncated_responses == (f"{path}:3",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "response": ""}, ":2: `response` is empty"),
        ({"prompt": "a", "response": " \n"}, ":2: `response` is empty"),
        ({"prompt": "", "response": "b"}, ":2: `prompt` is empty"),
        ({"prompt": "a", "output": "b"}, ":2: expected the key `response`, found the keys output, prompt"),
        ({"prompt": ["a"], "response": "b"}, ":2: expected `prompt` to be text, found a list"),
        ({"prompt": "a", "response": None}, ":2: expected `response` to be text, found null"),
    ],
)
def test_bad_fixed_responses_are_named_by_line(
    row: dict[str, object], message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = write_lines(tmp_path, [{"prompt": "a", "response": "b"}, row])
    with pytest.raises(UserError, match=re.escape(str(path)) + message):
        read_responses(str(path), tokenizer=tokenizer, data=LIMITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, ": cannot be read"),
        ("", ": expected at least one row"),
        ('{"prompt": "a"', ":1: not valid JSON"),
    ],
)
def test_an_unreadable_file_of_fixed_responses_is_refused(
    content: str | None, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "responses.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(path)) + message):
        read_responses(str(path), tokenizer=tokenizer, data=LIMITS)


def write_lines(directory: Path, rows: Sequence[dict[str, object]]) -> Path:
    path = directory / "responses.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
