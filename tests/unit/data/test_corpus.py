"""A plain-text corpus becomes blocks that hold every token once."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from kd.data import corpus
from kd.data.corpus import CorpusBlocks, find_corpus, open_corpus, pack_corpus
from kd.errors import UserError

BLOCK = 16


def write(directory: Path, **texts: str) -> list[Path]:
    directory.mkdir(exist_ok=True)
    for name, text in texts.items():
        (directory / f"{name}.txt").write_text(text, encoding="utf-8")
    return find_corpus(str(directory))


def pack(files: list[Path], tokenizer: PreTrainedTokenizerBase, directory: Path, *, limit: int = 10**6) -> Path:
    return pack_corpus(files, tokenizer=tokenizer, directory=directory, max_tokens=limit)


def all_tokens(blocks: CorpusBlocks) -> list[int]:
    return [token for block in blocks for token in (*block.prompt_ids.tolist(), *block.response_ids.tolist())]


def test_a_corpus_is_a_file_or_a_folder_of_texts_in_order(tmp_path: Path) -> None:
    files = write(tmp_path / "corpus", b="two", a="one")
    (tmp_path / "corpus" / "notes.md").write_text("not this")
    (tmp_path / "corpus" / "c").mkdir()
    (tmp_path / "corpus" / "c" / "d.txt").write_text("three")
    assert [file.name for file in find_corpus(str(tmp_path / "corpus"))] == ["a.txt", "b.txt", "d.txt"]
    assert find_corpus(str(files[0])) == [files[0]]


@pytest.mark.parametrize("pieces", ["small", "usual"])
def test_blocks_hold_every_token_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, pieces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces == "small":
        monkeypatch.setattr(corpus, "_PIECE_CHARACTERS", 1)
        monkeypatch.setattr(corpus, "_PIECES_PER_CALL", 2)
    texts = {"a": "The lazy dog sleeps.\nA box of jugs.\n\nThe quick fox.\n", "b": "", "c": "Twelve wizards.\n"}
    files = write(tmp_path / "corpus", **texts)
    blocks = open_corpus(pack(files, tokenizer, tmp_path), block_tokens=BLOCK)
    tokens = all_tokens(blocks)
    parts = tokenizer.decode(tokens).split(tokenizer.eos_token)
    # An end token closes each file that holds text.
    assert parts == [texts["a"], texts["c"], ""]
    assert [block.num_tokens for block in blocks[:-1]] == [BLOCK] * (len(blocks) - 1)
    assert 2 <= blocks[-1].num_tokens <= BLOCK
    # All but the first token of a block are learnt.
    assert all(len(block.prompt_ids) == 1 for block in blocks)


def test_a_rest_of_one_token_is_left_out() -> None:
    tokens = np.arange(2 * BLOCK + 2, dtype=np.int32)
    for length, num_blocks in ((2 * BLOCK, 2), (2 * BLOCK + 1, 2), (2 * BLOCK + 2, 3)):
        blocks = CorpusBlocks(tokens[:length], block_tokens=BLOCK, source="x")
        assert len(blocks) == len(list(blocks)) == num_blocks


def test_only_what_the_run_needs_is_read(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    files = write(tmp_path / "corpus", a="The lazy dog sleeps. " * 20, b="Not needed.")
    full = all_tokens(open_corpus(pack(files, tokenizer, tmp_path), block_tokens=BLOCK))
    part = all_tokens(open_corpus(pack(files, tokenizer, tmp_path, limit=40), block_tokens=BLOCK))
    assert part == full[:40]


def test_packed_tokens_are_used_again_until_the_text_changes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    files = write(tmp_path / "corpus", a="The lazy dog sleeps.")
    packed = pack(files, tokenizer, tmp_path)
    written = packed.stat().st_mtime_ns
    assert pack(files, tokenizer, tmp_path) == packed and packed.stat().st_mtime_ns == written
    write(tmp_path / "corpus", a="The quick fox runs away.")
    assert pack(files, tokenizer, tmp_path) != packed


def test_what_is_no_plain_text_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="found nothing there; give a plain-text file, a folder of them, or none"):
        find_corpus(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"found a folder without a .txt file"):
        find_corpus(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="expected text, found empty files"):
        pack(write(tmp_path / "blank", a="", b=""), tokenizer, tmp_path)
    broken = tmp_path / "latin.txt"
    broken.write_bytes("Müller".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin.txt: not valid UTF-8"):
        pack([broken], tokenizer, tmp_path)
    broken.write_bytes("a b".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"latin.txt: holds a NUL byte"):
        pack([broken], tokenizer, tmp_path)
    assert list(tmp_path.glob("corpus-*.int32")) == []


@pytest.mark.parametrize("name", ["a" * 300, "a\0"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="found nothing there"):
        find_corpus(name)


def test_hidden_files_are_no_part_of_a_corpus(tmp_path: Path) -> None:
    (tmp_path / ".home").mkdir()
    (file,) = write(tmp_path / ".home" / "corpus", a="Shown.")
    write(file.parent, **{"._a": "Left behind."})
    (file.parent / ".ipynb_checkpoints").mkdir()
    (file.parent / ".ipynb_checkpoints" / "a-checkpoint.txt").write_text("Left behind.")
    assert find_corpus(str(file.parent)) == [file]
