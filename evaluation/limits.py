"""Limits of rows that are read with the responses that they have."""

from kd.config.schema import DataConfig
from kd.errors import UserError


def row_limits(*, template: str, max_prompt_tokens: int, max_sequence_tokens: int) -> DataConfig:
    """The part of a training's configuration that says how rows become tokens.

    Raises:
        UserError: the longest prompt would leave no room for a response.
    """
    if max_prompt_tokens >= max_sequence_tokens:
        raise UserError(
            f"--max-prompt-tokens is {max_prompt_tokens}, which leaves no room for a response in"
            f" --max-sequence-tokens {max_sequence_tokens}; lower the first or raise the second"
        )
    return DataConfig(template=template, max_prompt_tokens=max_prompt_tokens, max_sequence_tokens=max_sequence_tokens)
