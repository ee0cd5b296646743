import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from kd.data.conversations import Turn
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
        ("rows.json", b"3", "{path}: expected a JSON list of objects, or an object per line"),
        ("rows.json", GOOD + b'{"instruction": "x"\n' + GOOD, "{path}:2: not valid JSON"),
        ("rows.json", b'[{"instruction": "x"}, 4]', "{path}:2: expected a JSON object, found a number"),
        ("rows.json", b'["\xff"]', "{path}: not valid UTF-8"),
        ("rows.parquet", b"not parquet at all", "{path}: not a valid parquet file"),
        ("rows.tsv", b"instruction\nx\n", "{path}: expected a .jsonl, .json, .csv or .parquet file, a directory"),
        ("rows.csv", b"instruction,output\nx,y\nx\n", "{path}:3: expected 2 cells, as in the header"),
        ("rows.csv", b"instruction,output\nx,y,z\n", "{path}:2: expected 2 cells, as in the header"),
        ("rows.csv", b'instruction\n"x\n', "{path}:2: not valid CSV"),
        ("rows.csv", b"instruction\n\xff\n", "{path}: not valid UTF-8"),
        ("rows.jsonl.gz", GOOD, "{path}: not a valid gzip file"),
        ("rows.jsonl", GOOD + b'{"instruction": ' + b"9" * 5000 + b"}\n", "{path}:2: not readable as JSON"),
        ("rows.jsonl", b"[" * 100_000 + b"]" * 100_000, "{path}:1: lists or objects are nested too deeply"),
        ("rows.jsonl", b'{"instruction": "\x00"}\n', "{path}:1: holds a NUL byte"),
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
    assert_refused("dolly", "dolly: expected a .jsonl, .json, .csv or .parquet file, a directory of them, or a hub")


def assert_refused(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_instructions(source)
    assert "\n" not in str(caught.value)


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"instruction": "Add.", "context": "1 2", "response": "3"}, "prompt from `instruction`, input from `context`"),
        ({"instruction": "Add.", "input": "1 2", "answer": "3"}, "response from `answer`"),
        ({"instruction": "Add.", "input": "1 2", "output": "3", "response": "4"}, "response from `output`"),
        ({"prompt": "Add.", "input": "1 2", "completion": "3"}, "prompt from `prompt`"),
        ({"question": "Add.", "input": "1 2", "answer": "3", "context": None}, "prompt from `question`"),
    ],
)
def test_usual_names_of_columns_are_recognised_and_said(row: dict[str, Any], columns: str, tmp_path: Path) -> None:
    said: list[str] = []
    path = write(tmp_path / "rows.jsonl", row)
    (found,) = read_instructions(path, say=said.append)
    assert found == Instruction(instruction="Add.", input="1 2", references=("3",), source=f"{path}:1")
    assert len(said) == 1 and said[0].startswith(f"{path}: ") and columns in said[0]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"q": "Add.", "a": "3", "prompt": "no", "answer": "no"})
    (found,) = read_instructions(path, columns={"prompt": "q", "response": "a"})
    assert (found.instruction, found.input, found.references) == ("Add.", "", ("3",))
    with pytest.raises(UserError, match="rows.jsonl:1: data.columns names `b` for response, found `a`, `answer`, `p"):
        read_instructions(path, columns={"prompt": "q", "response": "b"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "expected a column for the prompt (instruction, prompt, question, messages, conversations)"),
        ({"prompt": "x", "question": "y"}, "the columns `prompt`, `question` may all be the prompt; set data.columns"),
        ({"prompt": "x", "response": "y", "answer": "z"}, "the columns `answer`, `response` may all be the response"),
    ],
)
def test_columns_that_are_unclear_are_refused(row: dict[str, str], message: str, tmp_path: Path) -> None:
    assert_refused(write(tmp_path / "rows.jsonl", row), f"rows.jsonl:1: {re.escape(message)}")


TALK = [("system", "Be brief."), ("user", "Add 1 2."), ("assistant", "3"), ("user", "And 4?"), ("assistant", "7")]


def as_messages(turns: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("style", ["messages", "conversations", "parts", "prompt"])
def test_a_conversation_has_its_last_response_or_all(style: str, tmp_path: Path) -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    row: dict[str, Any] = {
        "messages": {"messages": as_messages(TALK), "prompt": "ignored"},
        "conversations": {"conversations": [{"from": names[role], "value": text} for role, text in TALK]},
        "parts": {
            "messages": [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK],
        },
        "prompt": {"prompt": as_messages(TALK[:4]), "completion": as_messages(TALK[4:])},
    }[style]
    path = write(tmp_path / "rows.jsonl", row)
    (last,) = read_instructions(path)
    assert last == Instruction(
        instruction="And 4?", input="", references=("7",), source=f"{path}:1", earlier=tuple(Turn(*t) for t in TALK[:3])
    )
    assert last.turns == tuple(Turn(*turn) for turn in TALK[:4])
    first, second = read_instructions(path, turns="all")
    assert (first.instruction, first.references, first.earlier) == ("Add 1 2.", ("3",), (Turn("system", "Be brief."),))
    assert second == replace(last, source=f"{path}:1 turn 4")
    assert first.source == f"{path}:1 turn 2"


def test_a_conversation_that_ends_with_the_user_has_no_response(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"messages": as_messages([("system", " "), *TALK[1:4]])})
    (found,) = read_instructions(path)
    # The blank system turn is left out.
    assert (found.references, found.earlier) == ((), (Turn("user", "Add 1 2."), Turn("assistant", "3")))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "expected `messages` to be a list of messages, found text"),
        ([], "expected `messages` to be a list of messages, found an empty list"),
        (["x"], "message 1 of `messages`: expected an object with `role` and `content`, found text"),
        (
            [{"role": "tool", "content": "x"}],
            "message 1 of `messages`: expected `role` to be system, user or assistant",
        ),
        ([{"role": "user", "content": None}], "message 1 of `messages`: expected `content` to be text, found null"),
        ([{"role": "user", "content": " "}], "message 1 of `messages`: `content` is empty"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "message 1 of `messages`: expected parts of type text with a text, found 'image'; only text",
        ),
        (as_messages([TALK[2], TALK[1]]), "the messages of `messages` are of assistant, user; expected one of the"),
        (as_messages([TALK[1], TALK[1]]), "the messages of `messages` are of user, user; expected"),
        (as_messages(TALK[:1]), "the messages of `messages` are of system; expected"),
    ],
)
def test_broken_conversations_are_refused(messages: object, message: str, tmp_path: Path) -> None:
    assert_refused(write(tmp_path / "rows.jsonl", {"messages": messages}), f"rows.jsonl:1: {re.escape(message)}")


def test_kinds_of_files(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "output": "3"}, {"instruction": "Say,\nhello", "output": None}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = b'instruction,output\nAdd.,3\n"Say,\nhello",\n'
    files = {
        "upper.JSONL": lines,
        "old.jsonl": lines.replace(b"\n", b"\r"),
        "lines.json": lines,
        "packed.jsonl.gz": gzip.compress(lines),
        "table.csv": table,
        "packed.CSV.GZ": gzip.compress(b"\xef\xbb\xbf" + table),
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        found = [(row.instruction, row.references) for row in read_instructions(str(path))]
        assert found == [("Add.", ("3",)), ("Say,\nhello", ())], name
    one = tmp_path / "one.json"
    one.write_text(json.dumps(rows[0], indent=1))
    assert [row.instruction for row in read_instructions(str(one))] == ["Add."]


def test_shards_patterns_and_saved_data_sets(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "README.md").write_text("About.")
    for number in (2, 1):
        write(shards / f"part-{number}.jsonl", {"instruction": f"{number}"})
    expected = [("1", f"{shards}/part-1.jsonl:1"), ("2", f"{shards}/part-2.jsonl:1")]
    for source in (str(shards), f"{shards}/part-*.jsonl"):
        assert [(row.instruction, row.source) for row in read_instructions(source)] == expected
    (shards / "more.csv").write_text("instruction\nx\n")
    assert_refused(str(shards), "shards: expected files of one kind, .*, found .csv, .jsonl, .jsonl; name")
    assert_refused(f"{shards}/none-*.jsonl", "expected files of one kind, .*, found none")
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([{"question": "a", "answer": "b"}]).save_to_disk(str(saved))
    assert [(row.instruction, row.source) for row in read_instructions(str(saved))] == [("a", f"{saved}:1")]
    both = tmp_path / "both"
    datasets.DatasetDict(train=datasets.load_from_disk(str(saved))).save_to_disk(str(both))
    assert_refused(str(both), f"expected one data set, found several splits; give one of {both}/train")


def test_bytes_of_a_table_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_dict({"instruction": [b"x"]}).to_parquet(str(path))
    assert_refused(str(path), "rows.parquet:1: expected `instruction` to be text, found bytes")
