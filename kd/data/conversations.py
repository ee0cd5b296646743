"""Conversations of a row: turns with a role and a text."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from kd.data.rows import Row, kind_of
from kd.errors import UserError

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
"""Names of roles in `messages` and in `conversations`, and what chat templates call them."""
_WEIGHTS = ("weight", "train")
"""Keys that say whether an assistant's message is learnt."""
_NOT_SHOWN = ("tool_calls", "tool_call_id", "function_call", "reasoning_content", "thinking", "images")
"""Keys with parts of a message that neither a prompt nor a response would have."""


class Turn(NamedTuple):
    """What one side says."""

    role: str
    """system, user or assistant."""
    content: str


def read_turns(row: Row, name: str, *, system: str = "") -> tuple[Turn, ...]:
    """The turns of a column: a list of {role, content} or {from, value}; `system` is a system turn before them.

    Raises:
        UserError: another form, an unknown role, content that is not text, or roles that do not alternate.
    """
    values = row.fields[name]
    if not isinstance(values, list) or not values:
        kind = "an empty list" if values == [] else kind_of(values)
        raise UserError(f"{row.source}: expected `{name}` to be a list of messages, found {kind}; correct the row")
    places = [f"{row.source}: message {number} of `{name}`" for number in range(1, len(values) + 1)]
    turns = tuple(_read_turn(value, where=where) for value, where in zip(values, places, strict=True))
    if turns[0] == Turn("system", ""):
        # Many data sets have an empty system prompt.
        turns = turns[1:]
    if system.strip():
        turns = (Turn("system", system), *turns)
    has_system = bool(turns) and turns[0].role == "system"
    talk = [turn.role for turn in (turns[1:] if has_system else turns)]
    expected = [("user", "assistant")[number % 2] for number in range(len(talk))]
    if not talk or talk != expected:
        raise UserError(
            f"{row.source}: the messages of `{name}` are of {', '.join(turn.role for turn in turns) or 'nobody'};"
            " expected one of the system at most, then user and assistant in turn; remove the row"
        )
    return turns


def _read_turn(value: object, *, where: str) -> Turn:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected an object with `role` and `content`, found {kind_of(value)}; correct it")
    role_key, content_key = ("role", "content") if "role" in value else ("from", "value")
    name, content = value.get(role_key), value.get(content_key)
    if not isinstance(name, str) or name not in _ROLES:
        found = repr(name) if isinstance(name, str) else kind_of(name)
        raise UserError(
            f"{where}: expected `role` to be system, user or assistant (or `from` to be human or gpt), found {found};"
            " remove the row"
        )
    role = _ROLES[name]
    _check_keys(value, role=role, where=where)
    fields = dict(value)
    if isinstance(content, list):
        fields[content_key] = "".join(_part_text(part, where=where) for part in content)
    blank: Literal["refused", "allowed"] = "allowed" if role == "system" else "refused"
    text = Row(source=where, fields=fields).text(content_key, blank=blank)
    return Turn(role, text if text.strip() else "")


def _check_keys(message: Mapping[str, object], *, role: str, where: str) -> None:
    """Refuse a message of which a part, or its weight, would be lost."""
    for key in _NOT_SHOWN:
        if message.get(key):
            raise UserError(f"{where}: `{key}` is not supported, only text in `content`; move it there, or remove it")
    for key in _WEIGHTS if role == "assistant" else ():
        if message.get(key) not in (None, 1):
            raise UserError(
                f"{where}: `{key}` is {message[key]!r:.20}, which is not supported (data.turns says which messages are"
                " learnt); remove it"
            )


def _part_text(part: object, *, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = repr(part.get("type")) if isinstance(part, Mapping) else kind_of(part)
    raise UserError(f"{where}: expected parts of type text with a text, found {kind:.40}; only text is supported")
