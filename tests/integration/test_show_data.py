"""promptkd show-data prints rows as the models read them, from a tokenizer alone."""

import json
from pathlib import Path

import pytest
import yaml

from kd.cli import main
from tests.tiny_tokenizers import save_tiny_tokenizer


@pytest.fixture
def config(tmp_path: Path) -> Path:
    save_tiny_tokenizer(tmp_path / "student", chat_template=True)
    talk = [("user", "Add 1 2."), ("assistant", "3"), ("user", "And 4?"), ("assistant", "seven")]
    rows = [
        {"messages": [{"role": role, "content": text} for role, text in talk]},
        {"messages": [{"role": "user", "content": "Say\nhello."}]},
        {"messages": [{"role": "user", "content": "Not shown."}]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "run.yaml"
    values = {
        "method": "promptkd",
        "model": {"student": str(tmp_path / "student"), "teacher": "teacher"},
        "data": {"train": str(tmp_path / "rows.jsonl"), "template": "chat"},
        "run": {"dir": str(tmp_path / "run")},
    }
    path.write_text(yaml.safe_dump(values))
    return path


def test_tokens_of_prompt_response_and_end(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-data", "--config", str(config), "--rows", "2"]) == 0
    shown = capsys.readouterr().out
    rows = config.with_name("rows.jsonl")
    assert f"{rows}: messages from `messages`" in shown
    assert f"{rows}:1: " in shown and f"{rows}:2: " in shown and f"{rows}:3: " not in shown
    text = shown.replace("│", "")
    assert "prompt: [user] Add 1 2.⏎\n[assistant] 3⏎\n[user] And 4?⏎\n[assistant] \nresponse: seven\nend: <|end" in text
    assert "no response" in shown
    assert "Say⏎\nhello." in text


def test_a_configuration_without_rows_is_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-data", "--config", str(config), "data.train=missing.jsonl"]) == 2
    assert capsys.readouterr().err.startswith("error: missing.jsonl: cannot be read (No such file or directory)")
