"""Files of unfinished evaluations, whole and torn at every byte."""

from pathlib import Path

import pytest

from evaluation.journal import Journal, read_journals, remove_journals
from kd.errors import UserError
from tests.unit.evaluation.generations import generation

FIRST = [(10, generation(0, response="one\u2028two\nthree")), (20, generation(0, response="é"))]
SECOND = [(10, generation(1, response="four"))]


def test_what_was_appended_comes_back(tmp_path: Path) -> None:
    directory = tmp_path / "new"
    journal = Journal(directory, rank=0)
    journal.append(FIRST)
    journal.append(SECOND)
    Journal(directory, rank=1).append([(20, generation(1))])
    assert read_journals(directory) == {
        (10, 0): FIRST[0][1],
        (20, 0): FIRST[1][1],
        (10, 1): SECOND[0][1],
        (20, 1): generation(1),
    }
    remove_journals(directory)
    assert read_journals(directory) == {}


def test_file_torn_at_any_byte_keeps_its_whole_lines_and_goes_on(tmp_path: Path) -> None:
    Journal(tmp_path, rank=0).append(FIRST)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    first_line = content.index(b"\n") + 1
    for end in range(len(content)):
        path.write_bytes(content[:end])
        whole = {} if end < first_line else {(10, 0): FIRST[0][1]}
        assert read_journals(tmp_path) == whole
        journal = Journal(tmp_path, rank=0)
        journal.append(SECOND)
        journal.append(FIRST[1:])
        assert read_journals(tmp_path) == whole | {(10, 1): SECOND[0][1], (20, 0): FIRST[1][1]}


def test_line_of_another_kind_is_named(tmp_path: Path) -> None:
    Journal(tmp_path, rank=3).append(FIRST)
    (path,) = tmp_path.iterdir()
    for line in (b"{}", b"[1]", b"\xff\xfe", b"7", b'{"seed": "x"}'):
        content = path.read_bytes()
        path.write_bytes(content + line + b"\n")
        with pytest.raises(UserError, match=r"unfinished-rank-3.jsonl:3: not a line of evaluate.py"):
            read_journals(tmp_path)
        path.write_bytes(content)


def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file, no directory")
    with pytest.raises(UserError, match="choose a writable --out"):
        Journal(tmp_path / "blocked", rank=0).append(FIRST)
