"""From the published files of a benchmark to rows of the project: which are kept, and whether all are there."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from evaluation.benchmarks.formats import Original, read_row_format
from evaluation.benchmarks.specs import BenchmarkSpec, RowFilter
from kd.data.encoding import tokenize
from kd.data.instructions import Instruction
from kd.data.templates import alpaca
from kd.errors import UserError
from kd.files import write_atomically
from kd.models.vocabulary import vocabulary_size

GPT2_ENTRIES = 50257


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The rows that are kept, in the order of their source, and how many were dropped for which reason."""

    rows: tuple[Instruction, ...]
    num_read: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        parts = [f"{count} dropped {reason}" for reason, count in self.dropped.items() if count]
        return "; ".join([f"{self.num_read} rows read", *parts])


def check_counts_as_published(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that lengths are counted in GPT-2 tokens, as for the published subsets.

    Raises:
        UserError: another tokenizer.
    """
    entries = vocabulary_size(tokenizer)
    if entries != GPT2_ENTRIES:
        raise UserError(
            f"--tokenizer {tokenizer.name_or_path}: has {entries} entries, GPT-2's has {GPT2_ENTRIES}; published"
            " subsets count GPT-2 tokens: give its tokenizer, or --allow-mismatch to count in these"
        )


def prepare(
    spec: BenchmarkSpec, original: Original, *, keep: RowFilter, tokenizer: PreTrainedTokenizerBase | None
) -> Prepared:
    """Read the rows of a benchmark, in its authors' format or the project's, and keep those that `keep` describes.

    The tokenizer counts the tokens that `keep` limits.

    Raises:
        UserError: unreadable source or broken row, a tokenizer that is missing, or no row left.
    """
    instructions = read_row_format(original.source) or spec.read(original)
    referenced = [row for row in instructions if row.references]
    fitting = referenced
    if keep.response_tokens is not None:
        lengths = _count_tokens([row.references[0] for row in referenced], tokenizer)
        lowest, highest = keep.response_tokens
        highest = sys.maxsize if highest is None else highest
        fitting = [row for row, length in zip(referenced, lengths, strict=True) if lowest <= length <= highest]
    rows = fitting
    if keep.max_prompt_tokens is not None:
        lengths = _count_tokens([alpaca(row) for row in fitting], tokenizer)
        rows = [row for row, length in zip(fitting, lengths, strict=True) if length <= keep.max_prompt_tokens]
    dropped = {
        "without a reference": len(instructions) - len(referenced),
        "with a first reference of another length": len(referenced) - len(fitting),
        "with a longer prompt": len(fitting) - len(rows),
    }
    prepared = Prepared(rows=tuple(rows), num_read=len(instructions), dropped=dropped)
    if not rows:
        raise UserError(f"{original.source}: no row is left ({prepared}; kept: {keep}); give a source with such rows")
    return prepared


def sample(rows: Sequence[Instruction], *, size: int, seed: int) -> tuple[Instruction, ...]:
    """`size` of the rows, drawn without replacement, in their order.

    Raises:
        UserError: there are fewer.
    """
    if size > len(rows):
        raise UserError(f"--sample {size}: only {len(rows)} rows are left; ask for fewer")
    chosen = np.random.default_rng(seed).choice(len(rows), size=size, replace=False)
    return tuple(rows[index] for index in sorted(chosen.tolist()))


def write_rows(path: Path, rows: Sequence[Instruction]) -> None:
    """Write `instruction`, `input` and `output` (a text, or the list of several), one JSON object a line.

    Raises:
        UserError: the file exists or cannot be written.
    """
    if path.exists():
        raise UserError(f"--out {path}: exists; delete it or choose another")
    lines = []
    for row in rows:
        output = row.references[0] if len(row.references) == 1 else row.references
        content = {"instruction": row.instruction, "input": row.input, "output": output}
        lines.append(json.dumps(content, ensure_ascii=False))
    write_atomically(path, "\n".join(lines) + "\n")


def _count_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if tokenizer is None:
        raise UserError("rows are selected by their GPT-2 tokens; give --tokenizer, a directory with GPT-2's tokenizer")
    return [len(ids) for ids in tokenize(texts, tokenizer=tokenizer)]
