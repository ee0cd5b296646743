from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from kd.data.conversations import Turn
from kd.data.instructions import Instruction
from kd.data.templates import Template, load_template
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
    chat_tokenizer.chat_template = (
        "{% if 'Sort' in messages[-1].content %}{{ raise_exception('cannot\\nsort') }}{% endif %}"
        "{{ messages[-1].content }}"
    )
    template = load_template("chat", tokenizer=chat_tokenizer)
    with pytest.raises(UserError, match=r"rows.jsonl:3: the tokenizer's chat template failed \(cannot sort\)"):
        template(instruction("Sort."))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("{% if messages|length > 1 %}{{ '{1}'.format('a') }}{% endif %}", "out of range"),
        ("{% if messages|length > 1 %}{{ missing.part }}{% endif %}", "'missing' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{% if messages|length > 1 %}{{ f() }}{% endif %}", "recursion"),
    ],
)
def test_a_chat_template_that_fails_on_a_later_row_is_one_line(
    form: str, reason: str, chat_tokenizer: PreTrainedTokenizerBase
) -> None:
    template, _ = load_chat(chat_tokenizer, form + "{{ messages[-1].content }}")
    assert template(instruction("Sort.")) == "Sort."
    with pytest.raises(UserError, match=f"rows.jsonl:3: the tokenizer's chat template failed .*{reason}"):
        template(PLAIN_TALK)


def test_a_chat_template_that_leaves_out_the_request_is_refused(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    message = "chat template leaves out or changes the last user turn"
    with pytest.raises(UserError, match=f"data.template is chat: .*{message}"):
        load_chat(chat_tokenizer, "{{ messages[0].role }}")
    template, _ = load_chat(chat_tokenizer, "{{ messages[0].content | trim }}")
    assert template(instruction(" Sort.\n")) == "Sort."
    with pytest.raises(UserError, match=f"rows.jsonl:3: .*{message}"):
        template(PLAIN_TALK)


def test_a_jinja_file_keeps_every_newline(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "mine.jinja"
    # A byte order mark is no part of the prompt.
    path.write_text("\ufeff\nQ: {{ instruction }}{% if input %} ({{ input }}){% endif %}\nA: \n\n")
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


@pytest.mark.parametrize("name", ["a" * 300, "a\0"])
def test_a_name_that_no_file_can_have_is_refused(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="cannot be read .*expected alpaca, chat or a Jinja file"):
        load_template(name, tokenizer=tokenizer)


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


# Turns of any role, an end token after each, and a variable.
FULL = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if think is defined and not think %}!{% endif %}{% endif %}"
)
TALK = Instruction(
    instruction="And 4?",
    input="",
    references=("7",),
    source="rows.jsonl:3",
    earlier=(Turn("system", "Be brief."), Turn("user", "Add 1 2."), Turn("assistant", "3")),
)
PLAIN_TALK = replace(TALK, earlier=TALK.earlier[1:])


def load_chat(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | dict[str, str], **settings: Any
) -> tuple[Template, list[str]]:
    tokenizer.chat_template = chat_template
    said: list[str] = []
    return load_template("chat", tokenizer=tokenizer, say=said.append, **settings), said


def test_chat_shows_all_turns_and_takes_options(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    end = "<|endoftext|>"
    before = f"<user>Add 1 2.{end}<assistant>3{end}<user>And 4?{end}<assistant>"
    template, said = load_chat(chat_tokenizer, FULL)
    assert template(TALK) == f"<system>Be brief.{end}{before}"
    assert template(PLAIN_TALK) == before
    assert said == []
    template, said = load_chat(chat_tokenizer, FULL, options={"think": False}, system_prompt="Be kind.")
    assert template(PLAIN_TALK) == f"<system>Be kind.{end}{before}!"
    # A row's own system turn stays.
    assert template(TALK) == f"<system>Be brief.{end}{before}!"
    assert said == ["the chat template changes responses or puts text before them; the data's own text is learnt"]


@pytest.mark.parametrize("refuses", [True, False])
def test_a_template_without_a_system_turn_gets_it_in_the_first_user_turn(
    chat_tokenizer: PreTrainedTokenizerBase, refuses: bool
) -> None:
    """Such templates raise an exception, or leave the turn out."""
    action = "{{ raise_exception('no system') }}" if refuses else ""
    form = "{% for m in messages %}{% if m.role == 'system' %}" + action + "{% else %}<{{ m.role }}>{{ m.content }}"
    template, said = load_chat(chat_tokenizer, form + "{% endif %}{% endfor %}", system_prompt="Be kind.")
    assert template(TALK) == "<user>Be brief.\n\nAdd 1 2.<assistant>3<user>And 4?"
    assert template(PLAIN_TALK) == "<user>Be kind.\n\nAdd 1 2.<assistant>3<user>And 4?"
    assert said[0] == "the chat template has no system turn; the system prompt begins the first user turn"


def test_a_template_that_needs_a_system_turn_gets_one(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    form = "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + FULL
    with pytest.raises(UserError, match=r"data.template is chat: .* failed \(system first\); set .* data.system_p"):
        load_chat(chat_tokenizer, form)
    template, _ = load_chat(chat_tokenizer, form, system_prompt="Be kind.")
    assert template(PLAIN_TALK).startswith("<system>Be kind.")


def test_one_of_several_named_templates(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    named = {"tool_use": "tools", "brief": FULL}
    with pytest.raises(UserError, match="has the chat templates brief, tool_use, and not 'default'; set data.temp"):
        load_chat(chat_tokenizer, named)
    template, _ = load_chat(chat_tokenizer, named, options={"chat_template": "brief"})
    assert template(PLAIN_TALK).endswith("<user>And 4?<|endoftext|><assistant>")


def test_the_date_of_a_template_is_the_same_every_day(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    form = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}{{ messages[-1].content }}"
    template, said = load_chat(chat_tokenizer, form)
    assert template(TALK) == "26 Jul 2024And 4?"
    assert said[0].startswith("the chat template reads the date, which is 2024-07-26 for all prompts; set date_string")
    template, said = load_chat(chat_tokenizer, form, options={"date_string": "1 May 2020"})
    assert template(TALK) == "1 May 2020And 4?"
    assert not any("date" in line for line in said)
    with pytest.raises(UserError, match="reads the date in a way that cannot be pinned; set date_string"):
        load_chat(chat_tokenizer, "{% set form = '%Y' %}{{ strftime_now(form) }}")


def test_another_end_token_of_the_template_is_said(chat_tokenizer: PreTrainedTokenizerBase) -> None:
    _, said = load_chat(chat_tokenizer, FULL.replace("<|endoftext|>", "<end>"))
    assert said == [
        "the chat template ends responses in '<end>', the data in '<|endoftext|>': see data.end_of_sequence"
    ]


def test_templates_for_one_turn_refuse_a_conversation(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{{ instruction }}")
    for name in ("alpaca", "plain", str(path)):
        with pytest.raises(UserError, match="rows.jsonl:3: a conversation with a system turn or several turns, and"):
            load_template(name, tokenizer=tokenizer)(TALK)
        with pytest.raises(UserError, match=r"data.template_options and data.system_prompt are for data.template=chat"):
            load_template(name, tokenizer=tokenizer, system_prompt="Be kind.")
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    template = load_template(str(path), tokenizer=tokenizer)
    assert template(PLAIN_TALK) == "user: Add 1 2.\nassistant: 3\nuser: And 4?\n"
    assert load_template("plain", tokenizer=tokenizer)(instruction("Sort.", input="b a")) == "Sort.\n\nb a"
