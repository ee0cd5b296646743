"""Instructions become token ids; every row that is dropped or truncated is reported."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from kd.config.schema import DataConfig
from kd.data.batch import TokenIds, TokenSequence
from kd.data.instructions import Instruction
from kd.data.rows import read_json_lines
from kd.data.templates import Template
from kd.errors import UserError

# Texts that the tokenizer turns into Python lists at a time, before they shrink to arrays.
_TEXTS_PER_CALL = 1024


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A row in tokens, without special tokens but the response's end-of-sequence token.

    `row_id` is the index among all rows of its source, dropped ones included. `prompt` is the full
    formatted text, also where `prompt_ids` keeps only its end. `response_ids` is the first reference,
    None where the row has none; it ends in EOS unless it was truncated.
    """

    row_id: int
    prompt: str
    prompt_ids: TokenIds
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
        chosen = self.response_ids if response_ids is None else response_ids
        if chosen is None:
            raise ValueError(f"{self.source} has no response")
        return TokenSequence(row_id=self.row_id, prompt_ids=self.prompt_ids, response_ids=chosen)


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """Which rows of `name` did not fit; each tuple holds their sources in the order of the file."""

    name: str
    num_rows: int
    max_prompt_tokens: int
    max_sequence_tokens: int
    dropped: tuple[str, ...]
    truncated_prompts: tuple[str, ...]
    truncated_responses: tuple[str, ...]

    def lines(self, *, shown: int | None = 5) -> list[str]:
        """One sentence for each kind of loss that occurred, with the first `shown` locations (None: all)."""
        prompt_limit = f"rows whose prompt is longer than {self.max_prompt_tokens} tokens"
        kinds = (
            ("dropped", self.dropped, prompt_limit),
            ("kept only the end of the prompt of", self.truncated_prompts, prompt_limit),
            (
                "truncated the response of",
                self.truncated_responses,
                f"rows longer than {self.max_sequence_tokens} tokens",
            ),
        )
        return [
            f"{self.name}: {action} {len(sources)} of {self.num_rows} {rows}: {_list_sources(sources, shown=shown)}"
            for action, sources, rows in kinds
            if sources
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """The rows that are left, in the order of their source, and what happened to the others."""

    examples: tuple[Example, ...]
    report: EncodingReport


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
        UserError: tokenizer without EOS, a required response that is missing, an empty prompt, all dropped.
    """
    if responses == "required":
        _require_references(instructions)
    rows = [_TextRow(source=row.source, prompt=template.render(row), references=row.references) for row in instructions]
    return _encode_rows(rows, tokenizer=tokenizer, data=data)


def read_responses(
    path: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    blank: Literal["refused", "allowed"] = "refused",
) -> Encoded:
    """Read fixed responses: JSON lines with `prompt` (formatted text) and `response`.

    EOS is appended, but for lines with `ended` false: responses that ran into a limit.

    Args:
        blank: whether responses without text are refused; training cannot learn from them, but models write them.

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


def find_duplicates(train: Sequence[Instruction], *, validation: Sequence[Instruction]) -> list[tuple[str, str]]:
    """Sources (train, validation) of validation rows whose instruction and input stand in a training row."""
    first_seen: dict[tuple[str, str], str] = {}
    for row in train:
        first_seen.setdefault((row.instruction, row.input), row.source)
    return [
        (first_seen[row.instruction, row.input], row.source)
        for row in validation
        if (row.instruction, row.input) in first_seen
    ]


def describe_duplicates(duplicates: Sequence[tuple[str, str]], *, shown: int | None = 5) -> str:
    """One line about what `find_duplicates` found, with the first `shown` pairs (None: all)."""
    pairs = [f"{validation} repeats {train}" for train, validation in duplicates]
    return f"{len(pairs)} validation rows repeat a training row: {_list_sources(pairs, shown=shown)}"


@dataclass(frozen=True, kw_only=True)
class _TextRow:
    source: str
    prompt: str
    references: tuple[str, ...]
    ended: bool = True
    """Whether the first reference is complete."""


@dataclass(frozen=True, kw_only=True)
class _Affected:
    dropped: list[str] = field(default_factory=list)
    truncated_prompts: list[str] = field(default_factory=list)
    truncated_responses: list[str] = field(default_factory=list)


def _encode_rows(rows: Sequence[_TextRow], *, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Encoded:
    eos = _end_of_sequence(tokenizer)
    affected = _Affected()
    examples = []
    prompts = _tokenize([row.prompt for row in rows], tokenizer=tokenizer)
    targets = _tokenize([row.references[0] if row.references else "" for row in rows], tokenizer=tokenizer)
    for row_id, (row, prompt_ids, target) in enumerate(zip(rows, prompts, targets, strict=True)):
        if len(prompt_ids) == 0:
            raise UserError(f"{row.source}: the prompt has no token; expected text for the response to follow")
        if len(prompt_ids) > data.max_prompt_tokens:
            if data.overlong == "drop":
                affected.dropped.append(row.source)
                continue
            affected.truncated_prompts.append(row.source)
            prompt_ids = prompt_ids[-data.max_prompt_tokens :]
        full = np.append(target, eos) if row.ended else target
        response_ids = full if row.references else None
        room = data.max_sequence_tokens - len(prompt_ids)
        if response_ids is not None and len(response_ids) > room:
            affected.truncated_responses.append(row.source)
            response_ids = response_ids[:room]
        examples.append(
            Example(
                row_id=row_id,
                prompt=row.prompt,
                prompt_ids=prompt_ids,
                response_ids=response_ids,
                references=row.references,
                source=row.source,
            )
        )
    report = _report(affected, rows=rows, data=data)
    if not examples:
        raise UserError(
            f"{report.name}: all {report.num_rows} prompts are longer than data.max_prompt_tokens="
            f"{data.max_prompt_tokens}; raise it or set data.overlong=truncate"
        )
    return Encoded(examples=tuple(examples), report=report)


def _tokenize(texts: Sequence[str], *, tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenIds]:
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        # verbose=False: a text beyond the model's length is our own business, see `EncodingReport`.
        encoding = tokenizer(
            list(texts[start : start + _TEXTS_PER_CALL]),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )
        for ids in encoding["input_ids"]:
            yield np.array(ids, dtype=np.int32)


def _end_of_sequence(tokenizer: PreTrainedTokenizerBase) -> np.int32:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer {tokenizer.name_or_path} has no end-of-sequence token, which ends every response;"
            " set eos_token in its tokenizer_config.json"
        )
    return np.int32(tokenizer.eos_token_id)


def _require_references(instructions: Sequence[Instruction]) -> None:
    for row in instructions:
        if not row.references:
            raise UserError(
                f"{row.source}: expected `output`, the response to learn from, found none; add it to the row"
            )


def _report(affected: _Affected, *, rows: Sequence[_TextRow], data: DataConfig) -> EncodingReport:
    return EncodingReport(
        name=rows[0].source.rpartition(":")[0],
        num_rows=len(rows),
        max_prompt_tokens=data.max_prompt_tokens,
        max_sequence_tokens=data.max_sequence_tokens,
        dropped=tuple(affected.dropped),
        truncated_prompts=tuple(affected.truncated_prompts),
        truncated_responses=tuple(affected.truncated_responses),
    )


def _list_sources(sources: Sequence[str], *, shown: int | None) -> str:
    if shown is None or len(sources) <= shown:
        return ", ".join(sources)
    return f"{', '.join(sources[:shown])}, … ({shown} shown)"
