"""Instructions become token ids; every row that is dropped or truncated is reported."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from kd.config.schema import DataConfig
from kd.data.batch import PromptRow, TokenIds, TokenSequence
from kd.data.instructions import Instruction
from kd.data.rows import read_json_lines
from kd.data.templates import Template
from kd.errors import UserError

_SHOWN = 5
"""Sources that a sentence names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example(PromptRow):
    """A row in tokens, whose only special token is the response's end-of-sequence token.

    `row_id` is the index among all rows of its source, dropped ones included. `prompt` is the full formatted text,
    even if `prompt_ids` keeps only its end. `response_ids` is the first reference, or None if the row has none; it ends
    in EOS unless it was truncated.
    """

    prompt: str
    response_ids: TokenIds | None
    references: tuple[str, ...]
    source: str

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + (0 if self.response_ids is None else len(self.response_ids))

    def with_response(self, response_ids: TokenIds | None = None) -> TokenSequence:
        """This prompt followed by `response_ids`, or by the row's own response.

        Raises:
            ValueError: no response is given and the row has none.
        """
        response_ids = self.response_ids if response_ids is None else response_ids
        if response_ids is None:
            raise ValueError(f"{self.source} has no response")
        return TokenSequence(row_id=self.row_id, prompt_ids=self.prompt_ids, response_ids=response_ids)


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """Which rows of `name` did not fit; each tuple holds their sources in the order of the file."""

    name: str
    num_rows: int
    limits: DataConfig
    dropped: tuple[str, ...]
    truncated_prompts: tuple[str, ...]
    truncated_responses: tuple[str, ...]

    def lines(self) -> list[str]:
        """One sentence for each way in which rows did not fit, with the first sources."""
        long_prompts = f"rows whose prompt is longer than {self.limits.max_prompt_tokens} tokens"
        long_rows = f"rows longer than {self.limits.max_sequence_tokens} tokens"
        kinds = (
            ("dropped", self.dropped, long_prompts),
            ("kept only the end of the prompt of", self.truncated_prompts, long_prompts),
            ("truncated the response of", self.truncated_responses, long_rows),
        )
        return [
            f"{self.name}: {action} {len(sources)} of {self.num_rows} {rows}: {_list_sources(sources)}"
            for action, sources, rows in kinds
            if sources
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The rows that are left, in the order of their source, and what happened to the others."""

    examples: tuple[Example, ...]
    report: EncodingReport

    def text_checksum(self) -> str:
        """SHA-256 of the rows' texts in their template."""
        digest = hashlib.sha256()
        for row in self.examples:
            digest.update(json.dumps([row.row_id, row.prompt, row.references]).encode())
        return digest.hexdigest()

    def token_checksum(self) -> str:
        """SHA-256 of the rows' token ids."""
        digest = hashlib.sha256()
        for row in self.examples:
            for ids in (row.prompt_ids, row.response_ids):
                digest.update(b"none" if ids is None else len(ids).to_bytes(8) + ids.tobytes())
        return digest.hexdigest()


def encode(
    instructions: Sequence[Instruction],
    *,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    data: DataConfig,
    responses: Literal["required", "optional"],
) -> Encoded:
    """Format and tokenise the rows of one source (at least one) and apply the limits of `data`.

    Raises:
        UserError: a required response that is missing, an empty prompt, all dropped.
    """
    for row in instructions:
        if responses == "required" and not row.references:
            raise UserError(f"{row.source}: expected `output`, the response to learn from, found none; add it")
    rows = [_TextRow(source=row.source, prompt=template(row), references=row.references) for row in instructions]
    return _encode_rows(rows, tokenizer=tokenizer, data=data)


def read_responses(
    path: str, *, tokenizer: PreTrainedTokenizerBase, data: DataConfig, blank: Literal["refused", "allowed"] = "refused"
) -> Encoded:
    """Read fixed responses: JSON lines with `prompt` (formatted text) and `response`.

    EOS is appended, except to responses with `ended` false, which ran into a length limit. Training cannot learn from
    blank responses, but models write them.

    Raises:
        UserError: unreadable file, broken line, empty prompt, a response that is refused, and as `encode`.
    """
    rows = [
        _TextRow(
            source=row.source,
            prompt=row.text("prompt"),
            references=(row.text("response", blank=blank),),
            ended=row.truth("ended", default=True),
        )
        for row in read_json_lines(Path(path))
    ]
    return _encode_rows(rows, tokenizer=tokenizer, data=data)


def tokenize(
    texts: Iterable[str], *, tokenizer: PreTrainedTokenizerBase, texts_per_call: int = 1024
) -> Iterator[TokenIds]:
    """Yield the token ids of each text, without special tokens; few texts are Python lists of integers at a time."""
    remaining = iter(texts)
    while part := list(islice(remaining, texts_per_call)):
        # verbose=False: the tokenizer would warn of texts that are longer than its model's context.
        encoding = tokenizer(part, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for ids in encoding["input_ids"]:
            yield np.array(ids, dtype=np.int32)


def find_duplicates(train: Sequence[Instruction], *, validation: Sequence[Instruction]) -> list[tuple[str, str]]:
    """Sources (train, validation) of validation rows whose prompt is that of a training row."""
    sources = {row.turns: row.source for row in reversed(train)}
    return [(sources[row.turns], row.source) for row in validation if row.turns in sources]


def describe_duplicates(duplicates: Sequence[tuple[str, str]]) -> str:
    """One line about the pairs that `find_duplicates` found, with the first of them."""
    pairs = [f"{validation} repeats {train}" for train, validation in duplicates]
    return f"{len(pairs)} validation rows repeat a training row: {_list_sources(pairs)}"


class _TextRow(NamedTuple):
    source: str
    prompt: str
    references: tuple[str, ...]
    ended: bool = True
    """Whether the first reference is complete."""


def _encode_rows(rows: Sequence[_TextRow], *, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Encoded:
    examples: list[Example] = []
    dropped, truncated_prompts, truncated_responses = [], [], []
    prompts = tokenize((row.prompt for row in rows), tokenizer=tokenizer)
    responses = tokenize((row.references[0] if row.references else "" for row in rows), tokenizer=tokenizer)
    for row_id, (row, prompt_ids, response_ids) in enumerate(zip(rows, prompts, responses, strict=True)):
        if len(prompt_ids) == 0:
            raise UserError(f"{row.source}: the prompt has no token; expected text for the response to follow")
        if len(prompt_ids) > data.max_prompt_tokens:
            if data.overlong == "drop":
                dropped.append(row.source)
                continue
            truncated_prompts.append(row.source)
            prompt_ids = prompt_ids[-data.max_prompt_tokens :]
        if row.ended:
            response_ids = np.append(response_ids, np.int32(tokenizer.eos_token_id))
        room = data.max_sequence_tokens - len(prompt_ids)
        if row.references and len(response_ids) > room:
            truncated_responses.append(row.source)
            response_ids = response_ids[:room]
        examples.append(
            Example(
                row_id=row_id,
                prompt=row.prompt,
                prompt_ids=prompt_ids,
                response_ids=response_ids if row.references else None,
                references=row.references,
                source=row.source,
            )
        )
    name = rows[0].source.rpartition(":")[0]
    if not examples:
        raise UserError(
            f"{name}: all {len(rows)} prompts are longer than data.max_prompt_tokens={data.max_prompt_tokens};"
            " raise it or set data.overlong=truncate"
        )
    report = EncodingReport(
        name=name,
        num_rows=len(rows),
        limits=data,
        dropped=tuple(dropped),
        truncated_prompts=tuple(truncated_prompts),
        truncated_responses=tuple(truncated_responses),
    )
    return Encoded(examples=tuple(examples), report=report)


def _list_sources(sources: Sequence[str]) -> str:
    shown = ", ".join(sources[:_SHOWN])
    return shown if len(sources) <= _SHOWN else f"{shown}, … ({_SHOWN} shown)"
