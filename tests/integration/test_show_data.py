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


def test_controls_of_rows_do_not_act_on_the_terminal(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "a\x1b[2Jb\rc\u202ed", "response": "\x9b1m\x07", "\x1b[0m": "x"}
    config.with_name("rows.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["show-data", "--config", str(config), "data.template=plain"]) == 0
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\r\u202e\x9b\x07")
    assert "prompt: a\\x1b[2Jb\\rc" in shown.replace("│", "")
    assert "not read: `\\x1b[0m`" in shown


def test_a_broken_row_and_a_broken_tokenizer_are_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with config.with_name("rows.jsonl").open("a") as rows:
        rows.write('{"messages": [{"role": "\\u001b[2J"}]}\n')
    assert main(["show-data", "--config", str(config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {config.with_name('rows.jsonl')}:4: message 1 of `messages`: expected `role`")
    path = config.with_name("student") / "tokenizer_config.json"
    path.write_text(path.read_text()[:20])
    assert main(["show-data", "--config", str(config)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "tokenizer_config.json is not valid JSON" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows 0: expected a number of rows; give at least 1"),
        (["model.student=" + "a" * 300], ": cannot be read ("),
        (["data.train=''"], "'': expected a .jsonl"),
    ],
)
def test_arguments_without_a_meaning_are_one_line(
    arguments: list[str], message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show-data", "--config", str(config), *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


@pytest.mark.parametrize("name", ["a" * 300, "a\0"])
def test_a_configuration_that_cannot_be_a_file_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-data", "--config", name]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cannot be read (no such file or preset)" in line
