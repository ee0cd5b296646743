"""Templates: how an instruction becomes the text of a prompt."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from kd.data.instructions import Instruction
from kd.data.rows import one_line
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
_VARIABLES = frozenset({"instruction", "input"})
# What a template can raise while it runs: Jinja's own errors, and those of Python's operators in expressions.
_RENDER_ERRORS = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError)


Template = Callable[[Instruction], str]
"""From an instruction to the text of its prompt, up to the start of the response; raises a UserError if it fails."""


def load_template(name: str, *, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Load `alpaca` (Table 5 of the paper), `chat` (the tokenizer's own), or the Jinja2 file `name`.

    Raises:
        UserError: no chat template, unreadable file, broken Jinja, or a variable that no row has.
    """
    if name == "alpaca":
        return alpaca
    if name != "chat":
        return _load_jinja(Path(name))
    if getattr(tokenizer, "chat_template", None) is None:
        raise UserError(
            f"data.template is chat, but the tokenizer {tokenizer.name_or_path} has no chat template;"
            " use alpaca or a Jinja file"
        )
    return partial(_chat, tokenizer=tokenizer)


def alpaca(instruction: Instruction) -> str:
    """Table 5 of the paper, to the byte; an input of white space counts as none."""
    form = _ALPACA_WITH_INPUT if instruction.input.strip() else _ALPACA_WITHOUT_INPUT
    return form.format(instruction=instruction.instruction, input=instruction.input)


def _chat(instruction: Instruction, *, tokenizer: PreTrainedTokenizerBase) -> str:
    """One user turn in the tokenizer's chat format: the instruction, a blank line, and the input."""
    content = instruction.instruction
    if instruction.input.strip():
        content += f"\n\n{instruction.input}"
    turns = [{"role": "user", "content": content}]
    try:
        return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    except _RENDER_ERRORS as error:
        raise UserError(
            f"{instruction.source}: the tokenizer's chat template failed ({one_line(error)});"
            " use data.template=alpaca or a Jinja file"
        ) from None


def _load_jinja(path: Path) -> Template:
    """The user's Jinja2 file with the variables `instruction` and `input`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"data.template {path}: cannot be read ({error.strerror}); expected alpaca, chat or a Jinja file"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"data.template {path}: not valid UTF-8 (byte {error.start}); save it as UTF-8") from None
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
        raise UserError(f"{path}: unknown variable {unknown}; a template may use instruction and input")
    if "instruction" not in used:
        raise UserError(f"{path}: does not use the variable instruction, so all prompts would be alike; add it")

    def render(instruction: Instruction) -> str:
        try:
            return compiled.render(instruction=instruction.instruction, input=instruction.input)
        except _RENDER_ERRORS as error:
            raise UserError(f"{path}: failed on {instruction.source} ({one_line(error)}); correct it") from None

    return render
