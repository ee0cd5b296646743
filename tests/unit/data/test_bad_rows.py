"""Rows that would be read in another way than they were meant: refused in one line, or read right."""

import datetime
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from kd.config.schema import ColumnRole
from kd.data.conversations import Turn
from kd.data.instructions import Instruction, read_instructions
from kd.errors import UserError, printable

ROW = {"instruction": "Add.", "input": "1 2", "output": "3"}
LINE = json.dumps(ROW).encode() + b"\n"
USER = {"role": "user", "content": "1 + 2?"}
ASSISTANT = {"role": "assistant", "content": "3"}


def refusal(source: Path | str, columns: dict[ColumnRole, str] | None = None) -> str:
    """The message, without the directory."""
    with pytest.raises(UserError) as caught:
        read_instructions(str(source), columns=columns)
    message = str(caught.value)
    assert message == printable(message)
    return message.replace(f"{Path(source).parent}/", "")


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"history": [["a", "b"]]}, "the column `history` may be part of the conversation, but would not be read"),
        ({"tools": [{"name": "add"}]}, "the column `tools` may be part of the conversation"),
        ({"input": None, "passage": "1 2"}, "the column `passage` may be the input, but"),
        ({"input": None, " Input": "1 2"}, "the column ` Input` may be the input, but"),
        ({"output": None, "chosen": "3", "rejected": "4"}, "the column `chosen` may be the response, but"),
        ({"output": None, "Output": "3"}, "the column `Output` may be the response, but"),
        ({"output": None, "target": ["3"]}, "the column `target` may be the response, but"),
    ],
)
def test_a_column_that_would_be_lost_is_refused(extra: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"instruction": "Say hello."}, {**ROW, **extra})
    found = refusal(path)
    assert found.startswith(f"rows.jsonl:2: {message}")
    assert "set data.columns='{prompt: instruction" in found
    # What the line says works.
    kept: dict[ColumnRole, str] = {"prompt": "instruction"}
    assert [row.instruction for row in read_instructions(str(path), columns=kept)] == ["Say hello.", "Add."]


def test_metadata_is_not_refused_but_said(tmp_path: Path) -> None:
    extra = {"category": "sums", "id": 3, "text": "Add. 1 2 3", "rejected": "4", "passage": "x", "history": [], "z": {}}
    said: list[str] = []
    (found,) = read_instructions(str(write(tmp_path / "rows.jsonl", {**ROW, **extra, "\x1b[2J": 1})), say=said.append)
    assert found == Instruction(instruction="Add.", input="1 2", references=("3",), source=f"{tmp_path}/rows.jsonl:1")
    assert said[0].endswith(
        "; not read: `\\x1b[2J`, `category`, `history`, `id`, `passage`, `rejected`, `text`, `z`"
    ), said


@pytest.mark.parametrize(
    "row",
    [
        {"system": "Be brief.", "question": "1 + 2?", "answer": "3"},
        {"system_prompt": "Be brief.", "messages": [USER, ASSISTANT]},
        {"system": "Be brief.", "prompt": [USER], "completion": [ASSISTANT]},
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "1 + 2?"}, {"from": "bing", "value": "3"}],
        },
    ],
)
def test_a_system_column_is_the_system_turn(row: dict[str, Any], tmp_path: Path) -> None:
    blank = {**row, next(iter(row)): " "}
    first, second = read_instructions(str(write(tmp_path / "rows.jsonl", row, blank)))
    assert first.turns == (Turn("system", "Be brief."), Turn("user", "1 + 2?"))
    assert second.turns == (Turn("user", "1 + 2?"),)
    assert first.references == second.references == ("3",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "a", "response": "a"}, "data.columns names `a` for prompt, which contradicts another role"),
        ({"messages": "talk", "prompt": "a"}, "data.columns names `a` for prompt, which contradicts another role"),
        ({"response": "a"}, "expected a column for the prompt"),
    ],
)
def test_columns_that_contradict_each_other(columns: dict[ColumnRole, str], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"a": "x", "talk": [USER]})
    assert refusal(path, columns).startswith(f"rows.jsonl:1: {message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "message 2 of `messages`: `weight` is 0, which is not"),
        ({"messages": [USER, {**ASSISTANT, "train": False}]}, "message 2 of `messages`: `train` is False, which"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{}]}]}, "message 2 of `messages`: `tool_calls` is not"),
        ({"messages": [USER, {**ASSISTANT, "thinking": "Hm."}]}, "message 2 of `messages`: `thinking` is not"),
        (
            {"messages": [{"role": ["user"], "content": "x"}]},
            "message 1 of `messages`: expected `role` to be system",
        ),
        ({"messages": [{"content": "x"}]}, "message 1 of `messages`: expected `role` to be system, user or assistant"),
        ({"messages": [{"role": "user"}]}, "message 1 of `messages`: expected the key `content`, found the keys role"),
        ({"messages": [USER, ASSISTANT, ASSISTANT]}, "the messages of `messages` are of user, assistant, assistant"),
        (
            {"messages": [USER, ASSISTANT, {"role": "system", "content": "x"}, USER]},
            "the messages of `messages` are of",
        ),
        ({"messages": [{"role": "system", "content": "x"}, USER], "system": "y"}, "the messages of `messages` are of"),
        ({"messages": [{"role": "\x1b[2J", "content": "x"}]}, "message 1 of `messages`: expected `role` to be system"),
        (
            {"prompt": [USER], "completion": "3", "input": "more"},
            "`prompt` is a conversation, so that `input` would",
        ),
    ],
)
def test_messages_that_would_be_read_in_part(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "rows.jsonl", row)).startswith(f"rows.jsonl:1: {message}")


def test_keys_of_messages_without_a_meaning_are_read_over(tmp_path: Path) -> None:
    row = {"messages": [{**USER, "tool_calls": None, "id": 7, "weight": 0}, {**ASSISTANT, "weight": 1, "train": True}]}
    (found,) = read_instructions(str(write(tmp_path / "rows.jsonl", row)))
    assert (found.instruction, found.references) == ("1 + 2?", ("3",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            LINE + b'{"instruction": "x", "instruction": "y"}',
            "a.jsonl:2: not readable as JSON (an object has",
        ),
        (
            "a.json",
            b'[{"instruction": "x",\n "instruction": "y"}]',
            "a.json: not readable as JSON (an object has",
        ),
        ("a.json", b'{"instruction": "x",\n "instruction": "y"}', "a.json:1: not readable as JSON (an object has"),
        ("a.jsonl", LINE.decode().encode("utf-16"), "a.jsonl:1: expected UTF-8 text, found UTF-16; save it as UTF-8"),
        ("a.csv", "instruction\nx\n".encode("utf-16-le"), "a.csv: holds a NUL byte, so it is no UTF-8 text"),
        ("a.jsonl", LINE + bytes(9), "a.jsonl:2: holds a NUL byte"),
        (
            "a.jsonl",
            gzip.compress(LINE, mtime=0),
            "a.jsonl:1: expected UTF-8 text, found gzip; save it as UTF-8, or correct",
        ),
        ("a.csv", b"PK\x03\x04", "a.csv: expected UTF-8 text, found zip"),
        (
            "a.jsonl.gz",
            gzip.compress(LINE, mtime=0)[:-9],
            "a.jsonl.gz: not a valid gzip file (Compressed file ended before",
        ),
        (
            "a.csv",
            b"instruction,output,output\nx,y,z\n",
            "a.csv:1: several columns are called `output`; rename",
        ),
        ("a.csv", b"instruction;output\nx, y;z\n", "a.csv:1: expected columns with commas between them, found"),
        (
            "a.csv",
            b"instruction\toutput\nx\ty\n",
            "a.csv:1: expected columns with commas between them, found",
        ),
        ("a.csv", b"instruction, output\nx, y\n", "a.csv:2: the column ` output` may be the response, but would not"),
        ("a.csv", b"instruction\nx,y\n", "a.csv:2: expected 1 cells, as in the header, found 2; quote cells that"),
        ("a.csv", b'instruction\nx\n"y\nz\n', "a.csv:3: not valid CSV (unexpected end of data)"),
    ],
)
def test_broken_text_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path).startswith(message)


def test_tables_of_spreadsheets_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf\r\n,instruction,output,\r\n\r\n0,Add.,3,\r\n\r\n1,\xe4\xb8\x80,,\r\n")
    found = [(row.instruction, row.references, row.source) for row in read_instructions(str(path))]
    assert found == [("Add.", ("3",), f"{path}:4"), ("一", (), f"{path}:6")]


TEXT = pyarrow.array(["x" * number for number in range(1, 200)])


@pytest.mark.parametrize(
    ("names", "columns", "message"),
    [
        (["instruction", "a", "a"], [TEXT, TEXT, TEXT], "rows.parquet: several columns are called `a`; rename"),
        (
            ["instruction"],
            [pyarrow.array([{"a": {"b": 1}}])],
            "rows.parquet:1: expected `instruction` to be text, found an object",
        ),
        (
            ["instruction"],
            [pyarrow.array([datetime.datetime(2020, 1, 1)])],
            "rows.parquet:1: expected `instruction` to be text, found a datetime",
        ),
        (
            ["instruction"],
            [pyarrow.Array.from_buffers(pyarrow.string(), 1, pyarrow.array([b"\xff"]).buffers())],
            "rows.parquet: not a valid parquet file ('utf-8' codec can't decode",
        ),
        (
            ["instruction", "when"],
            [pyarrow.array(["x"]), pyarrow.array([10**15], pyarrow.timestamp("s"))],
            "rows.parquet: not a valid parquet file (Python int too large",
        ),
    ],
)
def test_tables_that_are_not_text(names: list[str], columns: list[Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), path)
    assert refusal(path).startswith(message)


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[:60] + b"\xff" * 100 + data[160:]])
def test_a_damaged_table(spoil: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"instruction": TEXT}), path)
    path.write_bytes(spoil(path.read_bytes()))
    assert refusal(path).startswith("rows.parquet: not a valid parquet file (")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("state.json", "{", "JSONDecodeError: "),
        ("state.json", "{}", "KeyError: "),
        ("state.json", "[]", "TypeError: "),
        ("data-00000-of-00001.arrow", "", "ArrowInvalid: "),
        ("data-00000-of-00001.arrow", None, "FileNotFoundError: "),
        ("dataset_dict.json", "{}", "KeyError: "),
    ],
)
def test_a_broken_saved_data_set(file: str, content: str | None, reason: str, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([ROW]).save_to_disk(str(saved))
    (saved / file).unlink(missing_ok=True)
    if content is not None:
        (saved / file).write_text(content)
    if file == "dataset_dict.json":
        (saved / "state.json").unlink()
    assert refusal(saved).startswith(f"saved: not a readable data set of datasets ({reason}")


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("image", pyarrow.array([{"bytes": b"x", "path": None}]), "cannot be decoded (cannot identify image file"),
        ("when", pyarrow.array([10**15], pyarrow.timestamp("s")), "cannot be decoded (Python int too large"),
    ],
)
def test_a_row_that_a_data_set_cannot_decode(name: str, column: Any, message: str, tmp_path: Path) -> None:
    found = datasets.Dataset(pyarrow.table({"instruction": ["x"], name: column}))
    if name == "image":
        found = found.cast_column(name, datasets.Image())
    found.save_to_disk(str(tmp_path / "saved"))
    assert refusal(tmp_path / "saved").startswith(f"saved:1: {message}")


def test_hidden_files_and_directories_are_no_shards(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    (shards / ".ipynb_checkpoints").mkdir(parents=True)
    (shards / "older.jsonl").mkdir()
    write(shards / "part-1.jsonl", ROW)
    (shards / "._part-1.jsonl").write_bytes(bytes(9))
    (shards / ".DS_Store").write_bytes(bytes(9))
    for source in (shards, shards / "*.jsonl"):
        assert [row.source for row in read_instructions(str(source))] == [f"{shards}/part-1.jsonl:1"]
    shutil.rmtree(shards / "older.jsonl")
    (shards / "part-1.jsonl").unlink()
    assert refusal(shards).startswith("shards: expected files of one kind")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a" * 300 + ".jsonl", "cannot be read (File name too long)"),
        ("a" * 300, "expected a .jsonl, .json, .csv or .parquet file, a directory"),
        ("a" * 300 + "*.jsonl", "expected files of one kind"),
        ("a\0.jsonl", "cannot be read (embedded null byte)"),
        ("a\ud800.jsonl", "cannot be read ('utf-8' codec can't encode"),
        ("a\nb.jsonl", "cannot be read (No such file or directory)"),
    ],
)
def test_names_that_no_file_can_have(name: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / name)


def test_a_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not bind every user that tests run as."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert refusal(tmp_path).endswith("cannot be read (Permission denied); give a directory that can be read")
