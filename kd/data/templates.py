"""Templates: how an instruction becomes the text of a prompt."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from kd.config.schema import DataConfig
from kd.data.chat import RENDER_ERRORS, ChatTemplate
from kd.data.conversations import Turn
from kd.data.files import one_line
from kd.data.instructions import Instruction
from kd.errors import UserError

_ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_VARIABLES = frozenset({"instruction", "input", "messages"})


Template = Callable[[Instruction], str]
"""From an instruction to the text of its prompt, up to the start of the response; raises a UserError if it fails."""


def load_template(
    name: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    options: Mapping[str, Any] | None = None,
    system_prompt: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Template:
    """Load `alpaca` (Table 5 of the paper), `plain`, `chat` (the tokenizer's own), or the Jinja2 file `name`.

    Args:
        options: variables of a chat template.
        system_prompt: for conversations without a system turn; chat templates only.
        say: receives lines about a chat template for the run's log.

    Raises:
        UserError: no chat template or one that cannot be used, an unreadable file, broken Jinja, a variable that no row
            has, or settings of a chat template with another one.
    """
    if name == "chat":
        return ChatTemplate(tokenizer, options=options, system_prompt=system_prompt, say=say)
    if options or system_prompt is not None:
        raise UserError(
            f"data.template_options and data.system_prompt are for data.template=chat, and it is {name}; unset them"
        )
    if name in ("alpaca", "plain"):
        return alpaca if name == "alpaca" else plain
    return _load_jinja(Path(name))


def template_of(
    data: DataConfig, *, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None] | None = None
) -> Template:
    """`load_template` with the settings of a run."""
    return load_template(
        data.template,
        tokenizer=tokenizer,
        options=data.template_options,
        system_prompt=data.system_prompt,
        say=say,
    )


def alpaca(instruction: Instruction) -> str:
    """Table 5 of the paper, to the byte; an input of white space counts as none."""
    single_turn(instruction, template="alpaca")
    form = _ALPACA_WITH_INPUT if instruction.input.strip() else _ALPACA_WITHOUT_INPUT
    return form.format(instruction=instruction.instruction, input=instruction.input)


def plain(instruction: Instruction) -> str:
    """The text of the prompt itself; an input follows after a blank line."""
    return single_turn(instruction, template="plain").content


def single_turn(instruction: Instruction, *, template: str) -> Turn:
    """The only turn of a conversation.

    Raises:
        UserError: it has others, which `template` cannot show.
    """
    if instruction.earlier:
        raise UserError(
            f"{instruction.source}: a conversation with a system turn or several turns, and data.template={template}"
            " shows one user turn; set data.template=chat, or a Jinja file that uses messages"
        )
    return instruction.turns[0]


def _load_jinja(path: Path) -> Template:
    """The user's Jinja2 file with the variables `instruction` and `input`, or `messages`."""
    try:
        # A byte order mark would begin every prompt.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(
            f"data.template {path}: cannot be read ({error.strerror}); expected alpaca, chat or a Jinja file"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"data.template {path}: not valid UTF-8 (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        # A path with a NUL character.
        raise UserError(
            f"data.template {path}: cannot be read ({error}); expected alpaca, chat or a Jinja file"
        ) from None
    # A template may come with another person's configuration: the sandbox keeps it from reaching Python.
    environment = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    try:
        # Jinja counts a global such as range() among the names that a template expects to be given.
        used = jinja2.meta.find_undeclared_variables(environment.parse(text)) - set(environment.globals)
        compiled = environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: not valid Jinja ({error.message}); correct that line") from None
    if used - _VARIABLES:
        unknown = ", ".join(sorted(used - _VARIABLES))
        raise UserError(f"{path}: unknown variable {unknown}; a template may use instruction and input, or messages")
    if not used & {"instruction", "messages"}:
        raise UserError(f"{path}: does not use the variable instruction, so all prompts would be alike; add it")

    def render(instruction: Instruction) -> str:
        if "messages" not in used:
            single_turn(instruction, template=str(path))
        turns = [turn._asdict() for turn in instruction.turns]
        try:
            return compiled.render(instruction=instruction.instruction, input=instruction.input, messages=turns)
        except RENDER_ERRORS as error:
            raise UserError(f"{path}: failed on {instruction.source} ({one_line(error)}); correct it") from None

    return render
