import json
import re
from pathlib import Path

import datasets
import pytest

from kd.data.instructions import Instruction, read_instructions
from kd.errors import UserError

GOOD = b'{"instruction": "Add.", "input": "1 2", "output": "3"}\n'


def test_reads_json_lines_and_counts_blank_lines_in_the_source(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        GOOD
        + b"\n   \n"
        + b'{"instruction": "Say hello.", "topic": null}\r\n'
        + b'{"instruction": "Name one.", "input": null, "output": ["a", "b"]}\n'
        + b'{"instruction": "Later.", "output": null}'
    )
    assert read_instructions(str(path)) == [
        Instruction(instruction="Add.", input="1 2", references=("3",), source=f"{path}:1"),
        Instruction(instruction="Say hello.", input="", references=(), source=f"{path}:4"),
        Instruction(instruction="Name one.", input="", references=("a", "b"), source=f"{path}:5"),
        Instruction(instruction="Later.", input="", references=(), source=f"{path}:6"),
    ]


def test_texts_are_kept_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    # U+2028 and U+0085 end a line for str.splitlines, but not in JSON lines.
    texts = {"instruction": " two\u2028lines\x85 {braces} ", "input": "\ttab\r\n", "output": " é "}
    path.write_text(json.dumps(texts, ensure_ascii=False) + "\n", encoding="utf-8")
    (row,) = read_instructions(str(path))
    assert row.instruction == texts["instruction"]
    assert row.input == texts["input"]
    assert row.references == (texts["output"],)


def test_a_byte_order_mark_is_not_part_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD)
    assert [row.instruction for row in read_instructions(str(path))] == ["Add."]


def test_reads_a_json_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"instruction": "a"}, {"instruction": "b", "output": "c"}], indent=2))
    rows = read_instructions(str(path))
    assert [(row.instruction, row.references, row.source) for row in rows] == [
        ("a", (), f"{path}:1"),
        ("b", ("c",), f"{path}:2"),
    ]


def test_reads_parquet_where_a_missing_output_is_null(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(
        [{"instruction": "a", "output": ["b", "c"]}, {"instruction": "d", "output": None}]
    ).to_parquet(path)
    rows = read_instructions(str(path))
    assert [(row.instruction, row.references, row.source) for row in rows] == [
        ("a", ("b", "c"), f"{path}:1"),
        ("d", (), f"{path}:2"),
    ]


@pytest.mark.parametrize(("source", "split"), [("org/name", "train"), ("org/name:test[:2]", "test[:2]")])
def test_reads_a_split_of_a_hub_data_set(source: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list([{"instruction": "a", "input": "", "output": "b"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [row.source for row in read_instructions(source)] == [f"org/name:{split}:1"]
    assert asked == [("org/name", split)]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert_refused("org/name:test", r"org/name:test: no such file, and split 'test' of 'org/name' .*network")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path}: expected at least one row, found none"),
        (b"\n  \n", "{path}: expected at least one row, found none"),
        (GOOD * 6 + b'{"instruction": "x"\n' + GOOD, "{path}:7: not valid JSON .*column 20"),
        (GOOD + b"\n[1]\n", "{path}:3: expected a JSON object, found a list"),
        (GOOD + b"null\n", "{path}:2: expected a JSON object, found null"),
        (GOOD + b'{"text": "x"}', "{path}:2: expected the key `instruction`, found the keys text"),
        (GOOD + b"{}", "{path}:2: expected the key `instruction`, found the keys none"),
        (GOOD + b'{"instruction": " \\n"}', "{path}:2: `instruction` is empty"),
        (GOOD + b'{"instruction": 3}', "{path}:2: expected `instruction` to be text, found a number"),
        (
            GOOD + b'{"instruction": "x", "input": ["y"]}',
            "{path}:2: expected `input` to be text, found a list",
        ),
        (
            GOOD + b'{"instruction": "x", "output": true}',
            "{path}:2: expected `output` to be text, found a truth value",
        ),
        (GOOD + b'{"instruction": "x", "output": ["y", null]}', "{path}:2: expected `output` .* found null"),
        (GOOD + b'{"instruction": "x", "output": ""}', "{path}:2: `output` is empty"),
        (GOOD + b'{"instruction": "x", "output": " \\t"}', "{path}:2: `output` is empty"),
        (GOOD + b'{"instruction": "x", "output": []}', "{path}:2: `output` is an empty list"),
        (GOOD + b'{"instruction": "x", "output": ["y", " "]}', "{path}:2: `output` is empty"),
        (GOOD + b'{"instruction": "\\ud800"}', "{path}:2: `instruction` holds half of a surrogate pair"),
        (GOOD + b'{"instruction": "\xff"}', "{path}:2: not valid UTF-8"),
    ],
)
def test_bad_json_lines_are_named_by_file_and_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert_refused(str(path), message.format(path=re.escape(str(path))))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", b"", "{path}: expected at least one row"),
        ("rows.json", b"[]", "{path}: expected at least one row"),
        ("rows.json", b'[\n{"instruction": "x"}\n{}\n]', "{path}:3: not valid JSON"),
        (
            "rows.json",
            b'{"instruction": "x"}',
            "{path}: expected a JSON list of objects, found an object; name the file .jsonl",
        ),
        ("rows.json", b'[{"instruction": "x"}, 4]', "{path}:2: expected a JSON object, found a number"),
        ("rows.json", b'["\xff"]', "{path}: not valid UTF-8"),
        ("rows.parquet", b"not parquet at all", "{path}: not a valid parquet file"),
        ("rows.csv", b"instruction\nx\n", "{path}: expected a .jsonl, .json or .parquet file or a hub name"),
    ],
)
def test_other_bad_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(str(path), message.format(path=re.escape(str(path))))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.json", "missing.parquet"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    assert_refused(str(tmp_path / name), f"{name}: cannot be read \\(No such file or directory\\); give the path")


def test_a_source_that_is_neither_a_file_nor_a_hub_name_is_refused() -> None:
    assert_refused("dolly", "dolly: expected a .jsonl, .json or .parquet file or a hub name")


def assert_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_instructions(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("other", "name"), [("context", "input"), ("response", "output")])
def test_the_names_of_another_data_set_are_not_read_over(tmp_path: Path, other: str, name: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"instruction": "Add.", other: "1 2"}) + "\n")
    with pytest.raises(UserError, match=f"rows.jsonl:1: has `{other}` and no `{name}`; rename it to `{name}`"):
        read_instructions(str(path))
    path.write_text(json.dumps({"instruction": "Add.", other: "", name: "1 2"}) + "\n")
    assert len(read_instructions(str(path))) == 1
