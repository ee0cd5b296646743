"""The rows of a benchmark as evaluate.py needs them: prompts in tokens, with references."""

import sys
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from evaluation.command_options import Named
from kd.config.schema import DataConfig
from kd.data.encoding import Encoded, encode
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """How rows become prompts."""

    template: str
    max_prompt_tokens: int
    overlong: Literal["drop", "truncate"]


def read_benchmark(
    benchmark: Named, *, tokenizer: PreTrainedTokenizerBase, settings: PromptSettings, num_rows: int | None
) -> Encoded:
    """Read the first `num_rows` rows (None: all) and turn them into prompts.

    Raises:
        UserError: unreadable source or row, a row without reference, or no prompt that fits.
    """
    instructions = read_instructions(benchmark.path)[:num_rows]
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
