"""A pre-training corpus of plain text, packed into blocks of equal length without padding."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from kd.config.schema import Config
from kd.data.batch import TokenIds
from kd.data.encoding import Example, tokenize
from kd.data.loader import BatchLoader
from kd.distributed import World
from kd.errors import UserError

# Characters of a piece of text, which ends at a line end, and number of pieces in one call of the tokenizer.
_PIECE_CHARACTERS = 2**16
_PIECES_PER_CALL = 64


class CorpusBlocks(Sequence[Example]):
    """Consecutive blocks of one token sequence, as rows whose response is all but the first token.

    The tokens may be a memory-mapped file. Only the last block may be shorter; a remainder of one token is dropped.
    """

    def __init__(self, tokens: TokenIds, *, block_tokens: int, source: str) -> None:
        self._tokens = tokens
        self._block_tokens = block_tokens
        self._source = source

    def __len__(self) -> int:
        full, rest = divmod(len(self._tokens), self._block_tokens)
        return full + (rest > 1)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[position] for position in range(len(self))[index]]
        index = range(len(self))[index]
        start = index * self._block_tokens
        tokens = np.array(self._tokens[start : start + self._block_tokens])
        return Example(
            row_id=index,
            prompt="",
            prompt_ids=tokens[:1],
            response_ids=tokens[1:],
            references=(),
            source=f"{self._source}:{index + 1}",
        )


def find_corpus(source: str) -> list[Path]:
    """The files of a corpus: `source` itself, or all .txt files in and below it, in the order of their names.

    Raises:
        UserError: there is no such file, or none in the folder.
    """
    path = Path(source)
    # Unlike Path's methods, os.path has no error for names that the system refuses.
    if os.path.isfile(path):
        return [path]
    found = path.rglob("*.txt") if os.path.isdir(path) else ()
    files = sorted(file for file in found if file.is_file() and not _is_hidden(file.relative_to(path)))
    if not files:
        what = "a folder without a .txt file" if os.path.isdir(path) else "nothing there"
        raise UserError(f"minillm.corpus {source}: found {what}; give a plain-text file, a folder of them, or none")
    return files


def _is_hidden(path: Path) -> bool:
    """Whether an editor or a system left it behind."""
    return any(part.startswith(".") for part in path.parts)


def pack_corpus(files: Sequence[Path], *, tokenizer: PreTrainedTokenizerBase, directory: Path, max_tokens: int) -> Path:
    """Write the token ids of `files`, with EOS after each file that has text, into one file, and return its path.

    The file is in `directory`; that of an earlier call for the same `files` is used again. No text is read after
    `max_tokens` tokens.

    Raises:
        UserError: a file is not UTF-8 or cannot be read, or all of them are empty.
    """
    versions = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    digest = hashlib.sha256(repr((versions, max_tokens)).encode()).hexdigest()[:16]
    packed = directory / f"corpus-{digest}.int32"
    if packed.exists():
        return packed
    partial = packed.with_suffix(".partial")
    num_tokens = 0
    with partial.open("wb") as output:
        for tokens in _tokenize(files, tokenizer=tokenizer):
            tokens[: max_tokens - num_tokens].tofile(output)
            num_tokens += len(tokens)
            if num_tokens >= max_tokens:
                break
    if num_tokens == 0:
        raise UserError(f"minillm.corpus: {files[0].parent}: expected text, found empty files; give a corpus, or none")
    os.replace(partial, packed)
    return packed


def open_corpus(packed: Path, *, block_tokens: int) -> CorpusBlocks:
    """Blocks of the file that `pack_corpus` wrote; the tokens stay on disk."""
    return CorpusBlocks(np.memmap(packed, dtype=np.int32, mode="r"), block_tokens=block_tokens, source=packed.name)


def _tokenize(files: Sequence[Path], *, tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenIds]:
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    for file in files:
        has_text = False
        for tokens in tokenize(_read_pieces(file), tokenizer=tokenizer, texts_per_call=_PIECES_PER_CALL):
            has_text = True
            yield tokens
        if has_text:
            yield end


def _read_pieces(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as text:
            while lines := text.readlines(_PIECE_CHARACTERS):
                piece = "".join(lines)
                if "\0" in piece:
                    raise UserError(f"{file}: holds a NUL byte, so it is no UTF-8 text; save the file as UTF-8 text")
                yield piece
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); minillm.corpus takes plain-text files") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not valid UTF-8 ({error.reason}); save the file as UTF-8 text") from None


def load_corpus(
    source: str,
    *,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    world: World,
    say: Callable[[str], None],
) -> BatchLoader:
    """Global batches of pre-training text, with as many blocks as there are training rows; all ranks call it together.

    The main rank writes the token ids of `source`, a plain-text file or a folder of .txt files, into `directory`, which
    every rank must be able to read.

    Raises:
        UserError: on all ranks, when a file cannot be read or there is no text.
    """
    global_batch, block_tokens = config.schedule.global_batch, config.data.max_sequence_tokens
    max_tokens = config.schedule.steps * global_batch * block_tokens
    packed = None
    with world.agreed():
        if world.is_main:
            files = find_corpus(source)
            packed = pack_corpus(files, tokenizer=tokenizer, directory=directory, max_tokens=max_tokens)
    packed = world.from_main(packed)
    assert packed is not None
    blocks = open_corpus(packed, block_tokens=block_tokens)
    say(f"corpus {source}: {len(blocks)} blocks of {block_tokens} tokens")
    return BatchLoader(blocks, global_batch=global_batch, rank=world.rank, num_ranks=world.size, seed=config.run.seed)
