"""The tokenizer's chat template: how a conversation becomes the text of a prompt."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from kd.data.conversations import Turn
from kd.data.files import one_line
from kd.data.instructions import Instruction
from kd.errors import UserError

TEMPLATE_DATE = date(2024, 7, 26)
"""What a template that asks for today's date gets: a prompt must be the same tomorrow. Llama 3's own default."""

RENDER_ERRORS = (
    *(jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError),
    MemoryError,
)
"""What a template can raise while it runs: Jinja's own errors, and those of Python's operators in expressions."""


_READS_DATE = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


def _pin_date(template: str) -> str:
    """A template with `TEMPLATE_DATE` in place of today's date."""
    pinned = _READS_DATE.sub(lambda call: json.dumps(TEMPLATE_DATE.strftime(call[2])), template)
    if "strftime_now(" in pinned:
        raise UserError(
            "the chat template reads the date in a way that cannot be pinned; set date_string in data.template_options,"
            " or use a Jinja file"
        )
    return pinned


class ChatTemplate:
    """Renders conversations in the tokenizer's format, up to the start of the response."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        options: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """Try the template on short conversations.

        Args:
            options: variables of the template; `chat_template` selects one of several named templates.
            system_prompt: a system turn for conversations that have none.
            say: receives lines for the run's log.

        Raises:
            UserError: there is no template, no such named one, or it fails.
        """
        self._tokenizer, self._options, self._system_prompt = tokenizer, dict(options or {}), system_prompt
        source = self._source()
        if "strftime_now" in source and "date_string" not in self._options:
            self._options["chat_template"] = _pin_date(source)
            if say is not None:
                say(
                    f"the chat template reads the date, which is {TEMPLATE_DATE} for all prompts; set date_string in"
                    " data.template_options for another"
                )
        self._merges_system = not self._shows_system()
        if self._merges_system and system_prompt is not None and say is not None:
            say("the chat template has no system turn; the system prompt begins the first user turn")
        hello = Instruction(instruction="Hello.", input="", references=(), source="data.template is chat")
        prompt = self(hello)
        if say is not None and (warning := self._compare_response(hello, prompt)):
            say(warning)

    def __call__(self, instruction: Instruction) -> str:
        """The text of the prompt.

        Raises:
            UserError: the template fails on this row, or does not show its request.
        """
        try:
            prompt = self._render(self._turns(instruction))
        except RENDER_ERRORS as error:
            raise UserError(
                f"{instruction.source}: the tokenizer's chat template failed ({one_line(error)}); set what it needs in"
                " data.template_options or data.system_prompt, or use data.template=alpaca or a Jinja file"
            ) from None
        # Many templates leave out white space around a message.
        if instruction.turns[-1].content.strip() not in prompt:
            raise UserError(
                f"{instruction.source}: the tokenizer's chat template leaves out or changes the last user turn; use"
                " data.template=alpaca or a Jinja file"
            )
        return prompt

    def _turns(self, instruction: Instruction) -> tuple[Turn, ...]:
        turns = instruction.turns
        if self._system_prompt is not None and turns[0].role != "system":
            turns = (Turn("system", self._system_prompt), *turns)
        if self._merges_system and turns[0].role == "system":
            system, first, *rest = turns
            turns = (first._replace(content=f"{system.content}\n\n{first.content}"), *rest)
        return turns

    def _compare_response(self, instruction: Instruction, prompt: str) -> str | None:
        """A warning if the template writes a response in another way than prompt, response, end token."""
        try:
            whole = self._render([*self._turns(instruction), Turn("assistant", "Yes.")], is_prompt=False)
        except RENDER_ERRORS:
            return None
        if not whole.startswith(f"{prompt}Yes."):
            return "the chat template changes responses or puts text before them; the data's own text is learnt"
        end, after = str(self._tokenizer.eos_token), whole.removeprefix(f"{prompt}Yes.").strip()
        if after and not after.startswith(end):
            return f"the chat template ends responses in {after!r}, the data in {end!r}: see data.end_of_sequence"
        return None

    def _source(self) -> str:
        """The template's own text."""
        named, wanted = self._tokenizer.chat_template, self._options.get("chat_template")
        if named is None:
            raise UserError(
                f"data.template is chat, but the tokenizer {self._tokenizer.name_or_path} has no chat template;"
                " use alpaca or a Jinja file"
            )
        if isinstance(named, str):
            return named
        if (name := wanted or "default") not in named:
            raise UserError(
                f"the tokenizer has the chat templates {', '.join(sorted(named))}, and not {name!r}; set"
                f" data.template_options='{{chat_template: {min(named)}}}'"
            )
        return str(named[name])

    def _shows_system(self) -> bool:
        """Whether a system turn is part of the prompt; some templates refuse it, others leave it out."""
        try:
            return "Be brief." in self._render([Turn("system", "Be brief."), Turn("user", "Hello.")])
        except RENDER_ERRORS:
            return False

    def _render(self, turns: Sequence[Turn], *, is_prompt: bool = True) -> str:
        messages, options = [turn._asdict() for turn in turns], self._options
        render = self._tokenizer.apply_chat_template
        return str(render(messages, add_generation_prompt=is_prompt, tokenize=False, **options))
