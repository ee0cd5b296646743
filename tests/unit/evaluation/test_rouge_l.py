"""The command that scores a file of responses."""

import json
from pathlib import Path

import pytest

from evaluation.rouge_l import main


def test_command_scores_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "seed-1.jsonl"
    # U+2028 and U+0085 end a line for str.splitlines, but not in JSON lines.
    rows = [
        {"response": "red\u2028house\u0085", "references": ["red house"]},
        {"response": "x", "references": ["y"]},
        # A text for a list of one, and not for a list of letters.
        {"response": "tree", "references": "tree"},
        {"response": "", "references": ["x"]},
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert main(["--generations", str(path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("50.00") == 3 and "4 responses" in shown


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read"),
        (b"", "found none"),
        (b'{"response": "a", "references": ["a"]}\n{"response": "a"}\n', ":2: expected `response` and `references`"),
        (b'{"references": ["a"]}\n', ":1: expected `response` and `references`"),
        (b'{"response": "a", "references": []}\n', ":1: `references` is an empty list"),
        (b'{"response": 7, "references": ["a"]}\n', ":1: expected `response` to be text, found a number"),
        (b"nonsense\n", ":1: not valid JSON"),
        (b'{"response": "\xff", "references": ["a"]}\n', ":1: not valid UTF-8"),
    ],
)
def test_unusable_file_is_one_line(
    content: bytes | None, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "seed-1.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main(["--generations", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {path}")
    assert expected in message
    assert message.count("\n") == 1
