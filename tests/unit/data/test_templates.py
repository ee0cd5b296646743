from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd.data.instructions import Instruction
from kd.data.templates import load_template
from kd.errors import UserError
from tests.tiny_tokenizers import save_tiny_tokenizer


def instruction(text: str, *, input: str = "") -> Instruction:
    return Instruction(instruction=text, input=input, references=(), source="rows.jsonl:3")


def test_alpaca_with_input_to_the_byte(tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = load_template("alpaca", tokenizer=tokenizer)(instruction("Do {this}.", input=" a\n{input} "))
    assert prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context."
        " Write a response that appropriately completes the request."
        "\n\n### Instruction:\nDo {this}.\n\n### Input:\n a\n{input} \n\n### Response:\n"
    )


@pytest.mark.parametrize("blank", ["", " \n"])
def test_alpaca_without_input_to_the_byte(blank: str, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = load_template("alpaca", tokenizer=tokenizer)(instruction("Do this.", input=blank))
    assert prompt == (
        "Below is an instruction that describes a task."
        " Write a response that appropriately completes the request."
        "\n\n### Instruction:\nDo this.\n\n### Response:\n"
    )


@pytest.fixture
def chat_tokenizer(tmp_path: Path) -> PreTrainedTokenizerBase:
    save_tiny_tokenizer(tmp_path, chat_template=True)
    return AutoTokenizer.from_pretrained(tmp_path)


def test_chat_puts_the_input_after_a_blank_line(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    template = load_template("chat", tokenizer=chat_tokenizer)
    assert template(instruction("Sort.", input="b a")) == "[user] Sort.\n\nb a\n[assistant] "
    assert template(instruction("Sort.")) == "[user] Sort.\n[assistant] "


def test_chat_without_a_chat_template_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="data.template is chat, but the tokenizer .* has no chat template"):
        load_template("chat", tokenizer=tokenizer)


def test_a_chat_template_that_refuses_a_row_names_the_row(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    chat_tokenizer.chat_template = "{{ raise_exception('needs a\\nsystem turn') }}"
    template = load_template("chat", tokenizer=chat_tokenizer)
    with pytest.raises(UserError, match=r"rows.jsonl:3: the tokenizer's chat template failed \(needs a system turn\)"):
        template(instruction("Sort."))


def test_a_jinja_file_keeps_every_newline(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("\nQ: {{ instruction }}{% if input %} ({{ input }}){% endif %}\nA: \n\n")
    template = load_template(str(path), tokenizer=tokenizer)
    assert template(instruction("Why <b>?", input="x")) == "\nQ: Why <b>? (x)\nA: \n\n"
    assert template(instruction("Why?")) == "\nQ: Why?\nA: \n\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ instruction }}\n{% if %}", r"mine.jinja:2: not valid Jinja \("),
        ("{{ instruction | shout }}", r"mine.jinja:1: not valid Jinja \(No filter named 'shout'"),
        ("{{ instruction }} {{ question }}", "mine.jinja: unknown variable question"),
        ("Answer: {{ input }}", "mine.jinja: does not use the variable instruction"),
    ],
)
def test_a_broken_jinja_file_is_refused_before_any_row(
    text: str, message: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_template(str(path), tokenizer=tokenizer)


@pytest.mark.parametrize(
    "expression",
    [
        "instruction.topic",
        "instruction.__class__.__mro__",
        "instruction + 1",
        "1 / 0",
        "range(10 ** 9) | list",
    ],
)
def test_a_jinja_file_that_fails_on_a_row_names_file_and_row(
    expression: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ instruction }} {{ " + expression + " }}")
    template = load_template(str(path), tokenizer=tokenizer)
    with pytest.raises(UserError, match="mine.jinja: failed on rows.jsonl:3 "):
        template(instruction("Sort."))


def test_a_missing_jinja_file_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        UserError, match="data.template alpacca: cannot be read .*expected alpaca, chat or a Jinja file"
    ):
        load_template("alpacca", tokenizer=tokenizer)


def test_a_jinja_file_in_another_encoding_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(b"\xff{{ instruction }}")
    with pytest.raises(UserError, match="mine.jinja: not valid UTF-8"):
        load_template(str(path), tokenizer=tokenizer)
