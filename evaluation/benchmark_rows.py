"""Benchmarks for evaluate.py: named sources of instructions with references."""

import re
import sys
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from kd.config import DataConfig
from kd.data.encoding import Encoded, encode
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.errors import UserError

# The name becomes a directory.
_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A name for the results and the source of the rows."""

    name: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How rows become prompts."""

    template: str
    max_prompt_tokens: int
    overlong: Literal["drop", "truncate"]


def parse_benchmark(text: str) -> Benchmark:
    """Read NAME=FILE.

    Raises:
        UserError: another form, or a name that cannot be a directory's.
    """
    name, equals, source = text.partition("=")
    if not equals or not source or not _NAME.fullmatch(name):
        raise UserError(f"{text!r} is not NAME=FILE with a NAME of letters, digits, dots, - and _")
    return Benchmark(name=name, source=source)


def read_benchmark(
    benchmark: Benchmark, *, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings, num_rows: int | None
) -> Encoded:
    """Read the first `num_rows` rows (None: all) and turn them into prompts.

    Raises:
        UserError: unreadable source or row, a row without reference, or no prompt that fits.
    """
    instructions = read_instructions(benchmark.source)[:num_rows]
    for row in instructions:
        if not row.references:
            raise UserError(f"{row.source}: expected `output`, the reference to score against, found none; add it")
    data = DataConfig(
        template=settings.template,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_sequence_tokens=sys.maxsize,  # references are compared as text, never cut
        overlong=settings.overlong,
    )
    template = load_template(settings.template, tokenizer=tokenizer)
    return encode(instructions, tokenizer=tokenizer, template=template, data=data, responses="optional")
