"""From the published files of a benchmark to rows of the project: which are kept, and whether all are there."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from evaluation.benchmarks.formats import Original, read_row_format
from evaluation.benchmarks.specs import BenchmarkSpec, RowFilter
from kd.data.instructions import Instruction
from kd.data.templates import alpaca
from kd.errors import UserError
from kd.files import write_atomically
from kd.models.vocabulary import vocabulary_size

GPT2_ENTRIES = 50257

# Texts that the tokenizer turns into Python lists at a time.
_TEXTS_PER_CALL = 1024


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The rows that are kept, in the order of their source, and how many were dropped for which reason."""

    rows: tuple[Instruction, ...]
    num_read: int
    num_without_reference: int
    num_other_lengths: int
    """Of the first reference."""
    num_long_prompts: int

    def __str__(self) -> str:
        losses = (
            (self.num_without_reference, "without a reference"),
            (self.num_other_lengths, "with a first reference of another length"),
            (self.num_long_prompts, "with a longer prompt"),
        )
        return "; ".join([f"{self.num_read} rows read", *(f"{count} dropped {why}" for count, why in losses if count)])


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
    """Read the rows of a benchmark and keep those that `keep` describes.

    Args:
        original: in the authors' format, or in the project's own.
        tokenizer: counts the tokens; needed where `keep` limits them.

    Raises:
        UserError: unreadable source or broken row, a tokenizer that is missing, or no row left.
    """
    instructions = read_row_format(original.source) or spec.read(original)
    with_reference = [row for row in instructions if row.references]
    fitting = with_reference
    if keep.response_tokens is not None:
        lengths = _count_tokens([row.references[0] for row in with_reference], tokenizer)
        lowest, highest = keep.response_tokens
        fitting = [
            row
            for row, length in zip(with_reference, lengths, strict=True)
            if lowest <= length and (highest is None or length <= highest)
        ]
    rows = fitting
    if keep.max_prompt_tokens is not None:
        prompts = [alpaca(row) for row in fitting]
        lengths = _count_tokens(prompts, tokenizer)
        rows = [row for row, length in zip(fitting, lengths, strict=True) if length <= keep.max_prompt_tokens]
    prepared = Prepared(
        rows=tuple(rows),
        num_read=len(instructions),
        num_without_reference=len(instructions) - len(with_reference),
        num_other_lengths=len(with_reference) - len(fitting),
        num_long_prompts=len(fitting) - len(rows),
    )
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
    lines = [
        json.dumps(
            {
                "instruction": row.instruction,
                "input": row.input,
                "output": row.references[0] if len(row.references) == 1 else row.references,
            },
            ensure_ascii=False,
        )
        for row in rows
    ]
    write_atomically(path, "\n".join(lines) + "\n")


def _count_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if tokenizer is None:
        raise UserError("rows are selected by their GPT-2 tokens; give --tokenizer, a directory with GPT-2's tokenizer")
    lengths: list[int] = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        part = list(texts[start : start + _TEXTS_PER_CALL])
        lengths += map(len, tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])
    return lengths
