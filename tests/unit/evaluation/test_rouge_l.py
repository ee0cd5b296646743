"""ROUGE-L and exact match against numbers worked out by hand."""

import json
from pathlib import Path

import pytest

from evaluation.rouge_l import main
from kd.text_metrics import answer_accuracy, exact_match, rouge_l


def test_f_measure_of_the_longest_common_subsequence() -> None:
    # LCS "the cat on mat": 4 words of 5 in the response, of 6 in the reference.
    precision, recall = 4 / 5, 4 / 6
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l("the cat lay on mat", ["the cat sat on the mat"]) == pytest.approx(expected)


def test_order_of_words_counts() -> None:
    assert rouge_l("b a", ["a b"]) == pytest.approx(0.5)


def test_words_are_stemmed_and_case_is_ignored() -> None:
    assert rouge_l("Running DOGS", ["runs dog"]) == pytest.approx(1.0)


def test_best_reference_counts() -> None:
    assert rouge_l("red house", ["a green tree", "red house", "red"]) == pytest.approx(1.0)
    assert rouge_l("red house", ["red", "a green tree"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("response", ["", "  \n", "!?"])
def test_response_without_words_scores_zero(response: str) -> None:
    assert rouge_l(response, ["something"]) == 0.0
    assert not exact_match(response, ["something"])


def test_exact_match_ignores_case_punctuation_and_white_space() -> None:
    assert exact_match(" The  Odd: hat.\n", ["no", "the odd hat"])
    assert not exact_match("the odd hats", ["the odd hat"])


def test_accuracy_compares_extracted_answers() -> None:
    accuracy = answer_accuracy(r"#### (.+)")
    assert accuracy("3 + 1\n#### 5\nno: #### 4", ["so\n#### 4.", "#### 7"]) == 1
    assert accuracy("#### 5", ["#### 4"]) == accuracy("4", ["#### 4"]) == accuracy("4", ["4"]) == 0
    assert answer_accuracy(r"\d+")("it is 12", ["12"]) == 1


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
    assert capsys.readouterr().out == "ROUGE-L 50.00   exact match 50.00   4 responses\n"


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
