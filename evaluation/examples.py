"""Rows of a file as prompts in tokens, with their references."""

import sys
from typing import Literal

from transformers import PreTrainedTokenizerBase

from evaluation.settings import Prompts
from kd.config.schema import DataConfig
from kd.data.encoding import Encoded, encode
from kd.data.instructions import read_instructions
from kd.data.templates import load_template
from kd.errors import UserError

# References of an evaluated response are compared as text, never truncated.
NO_LIMIT = sys.maxsize


def read_examples(
    source: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    overlong: Literal["drop", "truncate"] = "drop",
    max_sequence_tokens: int = NO_LIMIT,
    responses: Literal["required", "optional"],
) -> Encoded:
    """Read the first `prompts.rows` rows of a file and encode them.

    Raises:
        UserError: an unreadable file or row, a required reference that is missing, contradicting limits, or no prompt
            that fits.
    """
    return encode(
        read_instructions(source, columns=prompts.columns)[: prompts.rows],
        tokenizer=tokenizer,
        template=load_template(
            prompts.template,
            tokenizer=tokenizer,
            options=prompts.template_options,
            system_prompt=prompts.system_prompt,
        ),
        data=row_limits(prompts, overlong=overlong, max_sequence_tokens=max_sequence_tokens),
        responses=responses,
    )


def print_report(encoded: Encoded) -> None:
    """Print to stderr which rows were dropped or truncated."""
    for line in encoded.report.lines():
        print(line, file=sys.stderr)


def row_limits(
    prompts: Prompts, *, max_sequence_tokens: int, overlong: Literal["drop", "truncate"] = "drop"
) -> DataConfig:
    """The part of a training's configuration that decides how rows become tokens.

    Raises:
        UserError: the longest prompt would leave no room for a response.
    """
    if prompts.max_prompt_tokens >= max_sequence_tokens:
        raise UserError(
            f"data.max_prompt_tokens is {prompts.max_prompt_tokens}, which leaves no room for a response in"
            f" data.max_sequence_tokens={max_sequence_tokens}; lower the first or raise the second"
        )
    return DataConfig(
        template=prompts.template,
        max_prompt_tokens=prompts.max_prompt_tokens,
        max_sequence_tokens=max_sequence_tokens,
        overlong=overlong,
    )
