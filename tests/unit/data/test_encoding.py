"""Instructions become token ids, and every row that loses something is reported."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from kd.config.schema import DataConfig
from kd.data.batch import SequenceBatch, TokenIds
from kd.data.encoding import Encoded, describe_duplicates, encode, find_duplicates
from kd.data.instructions import Instruction
from kd.errors import UserError
from tests.tiny_tokenizers import END_OF_TEXT


def plain(instruction: Instruction) -> str:
    """A template of which the instruction itself is the prompt, so that tests count its tokens."""
    return instruction.instruction


def instruction(text: str, *references: str, line: int = 1, input: str = "") -> Instruction:
    return Instruction(instruction=text, input=input, references=references, source=f"rows.jsonl:{line}")


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    *rows: Instruction,
    responses: Literal["required", "optional"] = "required",
    **limits: Any,
) -> Encoded:
    data = DataConfig(train="rows.jsonl", **limits)
    return encode(rows, tokenizer=tokenizer, template=plain, data=data, responses=responses)


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def ids_of(response: TokenIds | None) -> list[int]:
    assert response is not None
    return response.tolist()


def test_prompt_and_response_are_tokenised_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    assert token_ids("response", tokenizer) != token_ids("resp", tokenizer) + token_ids("onse", tokenizer)
    encoded = encode_rows(tokenizer, instruction("resp", "onse", "other"))
    (example,) = encoded.examples
    assert example.prompt == "resp"
    assert example.prompt_ids.tolist() == token_ids("resp", tokenizer)
    assert ids_of(example.response_ids) == [*token_ids("onse", tokenizer), tokenizer.eos_token_id]
    assert example.prompt_ids.dtype == np.int32
    assert example.references == ("onse", "other")
    assert example.source == "rows.jsonl:1"
    assert encoded.report.lines() == []


def test_tokens_that_a_tokenizer_adds_by_itself_stay_out(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, tokenizer.eos_token_id)]
    )
    assert tokenizer("word")["input_ids"][0] == tokenizer.eos_token_id
    (example,) = encode_rows(tokenizer, instruction("word", "word")).examples
    assert tokenizer.eos_token_id not in example.prompt_ids
    assert ids_of(example.response_ids).index(tokenizer.eos_token_id) == len(example.prompt_ids)


def test_the_real_end_survives_a_padding_token_of_the_same_id(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoded = encode_rows(tokenizer, instruction("a", "bcd"), instruction("e", "f"))
    rows = [example.with_response() for example in encoded.examples]
    batch = SequenceBatch.collate(rows, pad_id=tokenizer.pad_token_id, device=torch.device("cpu"))
    lengths = [len(row.response_ids) for row in rows]
    ends = batch.labels[[lengths[0] - 1, sum(lengths) - 1]]
    assert ends.tolist() == [tokenizer.eos_token_id] * 2
    assert batch.labels.tolist().count(tokenizer.eos_token_id) == 2


def test_long_prompts_are_dropped_and_named(tokenizer: PreTrainedTokenizerBase) -> None:
    # Digits are one token each: nothing in the tokenizer's text joins them.
    texts = ["1234", "12345", "1", "123456", "2"]
    rows = [instruction(text, line=line) for line, text in enumerate(texts, start=3)]
    encoded = encode_rows(tokenizer, *rows, responses="optional", max_prompt_tokens=4)
    assert [(row.row_id, row.prompt, row.source) for row in encoded.examples] == [
        (0, "1234", "rows.jsonl:3"),
        (2, "1", "rows.jsonl:5"),
        (4, "2", "rows.jsonl:7"),
    ]
    assert encoded.report.dropped == ("rows.jsonl:4", "rows.jsonl:6")
    assert encoded.report.lines() == [
        "rows.jsonl: dropped 2 of 5 rows whose prompt is longer than 4 tokens: rows.jsonl:4, rows.jsonl:6"
    ]


def test_long_prompts_keep_their_end_when_truncated(tokenizer: PreTrainedTokenizerBase) -> None:
    encoded = encode_rows(
        tokenizer,
        instruction("1234", "5"),
        instruction("123456", "7", line=2),
        max_prompt_tokens=4,
        overlong="truncate",
    )
    assert [tokenizer.decode(row.prompt_ids) for row in encoded.examples] == ["1234", "3456"]
    assert encoded.examples[1].prompt == "123456"
    assert encoded.report.dropped == ()
    assert encoded.report.lines() == [
        "rows.jsonl: kept only the end of the prompt of 1 of 2 rows whose prompt is longer than 4 tokens: rows.jsonl:2"
    ]


def test_long_sequences_lose_the_end_of_the_response(tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token
    encoded = encode_rows(
        tokenizer,
        instruction("12", "345"),
        instruction("12", "3456", line=2),
        instruction("1234", "56789", line=3),
        max_prompt_tokens=5,
        max_sequence_tokens=6,
    )
    # The first fits to the token; the second loses nothing but its EOS, which it must not pretend to have.
    responses = [tokenizer.decode(ids_of(row.response_ids)) for row in encoded.examples]
    assert responses == [f"345{eos}", "3456", "56"]
    assert [row.num_tokens for row in encoded.examples] == [6, 6, 6]
    assert encoded.report.lines() == [
        "rows.jsonl: truncated the response of 2 of 3 rows longer than 6 tokens: rows.jsonl:2, rows.jsonl:3"
    ]


def test_a_report_shows_a_few_places_and_keeps_all(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [instruction("1")] + [instruction("123", line=line) for line in range(2, 9)]
    report = encode_rows(tokenizer, *rows, responses="optional", max_prompt_tokens=2).report
    places = [f"rows.jsonl:{line}" for line in range(2, 9)]
    start = "rows.jsonl: dropped 7 of 8 rows whose prompt is longer than 2 tokens: "
    assert report.lines() == [f"{start}{', '.join(places[:5])}, … (5 shown)"]
    assert report.dropped == tuple(places)


def test_many_rows_stay_in_order(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = [instruction(f"prompt {index}", f"{index}", line=index) for index in range(2500)]
    encoded = encode_rows(tokenizer, *rows)
    assert [row.row_id for row in encoded.examples] == list(range(2500))
    assert [tokenizer.decode(row.prompt_ids) for row in encoded.examples] == [row.instruction for row in rows]
    assert [tokenizer.decode(ids_of(row.response_ids)[:-1]) for row in encoded.examples] == [
        str(index) for index in range(2500)
    ]


def test_rows_without_output_pass_only_where_responses_are_optional(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = [instruction("a", "b"), instruction("c", line=7)]
    encoded = encode_rows(tokenizer, *rows, responses="optional")
    with pytest.raises(UserError, match="rows.jsonl:7: expected `output`, the response to learn from, found none"):
        encode_rows(tokenizer, *rows)
    assert ids_of(encoded.examples[0].response_ids)[-1] == tokenizer.eos_token_id
    assert encoded.examples[1].response_ids is None
    assert encoded.examples[1].references == ()
    with pytest.raises(ValueError, match="rows.jsonl:7 has no response"):
        encoded.examples[1].with_response()
    sampled = encoded.examples[1].with_response(np.array([5, 6], dtype=np.int32))
    assert (sampled.row_id, sampled.response_ids.tolist()) == (1, [5, 6])


def test_dropping_every_row_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        UserError,
        match=r"rows.jsonl: all 2 prompts are longer than data.max_prompt_tokens=2; .*data.overlong=truncate",
    ):
        encode_rows(tokenizer, instruction("123"), instruction("1234"), responses="optional", max_prompt_tokens=2)


def test_a_prompt_without_tokens_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="rows.jsonl:4: the prompt has no token"):
        encode_rows(tokenizer, instruction("a"), instruction("", line=4), responses="optional")


def test_validation_rows_that_repeat_a_training_row_are_found() -> None:
    train = [instruction("a", line=1), instruction("a", "x", input="b", line=2), instruction("a", line=3)]
    validation = [
        instruction("a", "other response", line=11),
        instruction("a", input="c", line=12),
        instruction("a", input="b", line=13),
    ]
    duplicates = find_duplicates(train, validation=validation)
    assert duplicates == [("rows.jsonl:1", "rows.jsonl:11"), ("rows.jsonl:2", "rows.jsonl:13")]
    assert describe_duplicates(duplicates) == (
        "2 validation rows repeat a training row:"
        " rows.jsonl:11 repeats rows.jsonl:1, rows.jsonl:13 repeats rows.jsonl:2"
    )
