"""Instructions: a request to a model, and the responses to learn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kd.config.schema import ColumnRole, DataConfig
from kd.data.conversations import Turn, read_turns
from kd.data.rows import Row, read_rows
from kd.errors import UserError, printable

_NAMES: dict[ColumnRole, tuple[str, ...]] = {
    "messages": ("messages", "conversations"),
    "prompt": ("instruction", "prompt", "question"),
    "input": ("input", "context"),
    "response": ("output", "response", "answer", "completion"),
    "system": ("system", "system_prompt"),
}
"""Names of columns by their role; the first name of a role wins over the others."""
_SIMILAR: dict[ColumnRole, tuple[str, ...]] = {
    "input": ("passage", "document", "article", "paragraph"),
    "response": ("target", "solution", "chosen", "rejected"),
}
"""Names of columns that may have a role, if no other column has it: too unclear to be read unasked, or left out."""
_UNSUPPORTED = ("history", "tools", "functions")
"""Names of columns with a part of the conversation that no role reads."""
_WITH_MESSAGES: tuple[ColumnRole, ...] = ("messages", "system")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One request; `references` is empty if the row has no response, and `source` is that of its `Row`."""

    instruction: str
    input: str
    references: tuple[str, ...]
    source: str
    earlier: tuple[Turn, ...] = ()
    """The turns before the request: a system turn, and those of an earlier exchange."""

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation that a response continues; instruction and input are one user turn."""
        blank_line = f"\n\n{self.input}" if self.input.strip() else ""
        return (*self.earlier, Turn("user", self.instruction + blank_line))


def read_instructions(
    source: str,
    *,
    columns: Mapping[ColumnRole, str] | None = None,
    turns: Literal["last", "all"] = "last",
    say: Callable[[str], None] | None = None,
) -> list[Instruction]:
    """Read the rows of `read_rows`; their columns are recognised by the names of `_NAMES`, or named by `columns`.

    A conversation becomes one instruction, whose response is its last assistant turn; or one for each assistant turn,
    with `turns` "all". One that ends with the user has no response. `say` receives a line about the columns.

    Raises:
        UserError: unreadable source, no column or several for a role, a broken row, an empty instruction or response.
    """
    rows = read_rows(source)
    # A column of nulls is one that a table could not leave out.
    names = {name for row in rows for name, value in row.fields.items() if value is not None}
    found = _find_columns(rows, names, columns=columns or {})
    if say is not None:
        line = f"{source}: " + ", ".join(f"{role} from `{name}`" for role, name in found.items())
        unread = names - set(found.values())
        say(printable(f"{line}; not read: {_list(unread)}" if unread else line))
    return [instruction for row in rows for instruction in _read_row(row, columns=found, turns=turns)]


def read_rows_of(source: str, data: DataConfig, *, say: Callable[[str], None] | None = None) -> list[Instruction]:
    """`read_instructions` with the settings of a run."""
    return read_instructions(source, columns=data.columns, turns=data.turns, say=say)


def _find_columns(rows: Sequence[Row], names: set[str], *, columns: Mapping[ColumnRole, str]) -> dict[ColumnRole, str]:
    """The name of each role's column, of `names`, which the rows have."""
    source = rows[0].source
    for role, name in columns.items():
        if name not in names:
            raise UserError(f"{source}: data.columns names `{name}` for {role}, found {_list(names)}; correct it")
        if list(columns.values()).count(name) > 1 or ("messages" in columns and role not in _WITH_MESSAGES):
            raise UserError(
                f"{source}: data.columns names `{name}` for {role}, which contradicts another role; give each role a"
                " column of its own, and only system beside messages"
            )
    if columns:
        found = dict(columns)
    else:
        chosen = {role: _choose(role, names, source=source) for role in _NAMES}
        found = {role: name for role, name in chosen.items() if name is not None}
        if "messages" in found:
            found = {role: name for role, name in found.items() if role in _WITH_MESSAGES}
    if "messages" not in found and "prompt" not in found:
        raise UserError(
            f"{source}: expected a column for the prompt ({', '.join((*_NAMES['prompt'], *_NAMES['messages']))}), found"
            f" {_list(names)}; rename it, or set data.columns"
        )
    if not columns:
        _refuse_lost_columns(rows, names, found)
    return found


def _refuse_lost_columns(rows: Sequence[Row], names: set[str], found: Mapping[ColumnRole, str]) -> None:
    """Refuse a column that models should probably see, but that no role reads; data.columns may leave it out."""
    parts = dict.fromkeys(_UNSUPPORTED, "part of the conversation")
    for role in () if "messages" in found else set(_NAMES) - set(found):
        parts |= dict.fromkeys((*_NAMES[role], *_SIMILAR.get(role, ())), f"the {role}")
    lost = {name: parts[usual] for name in names - set(found.values()) if (usual := name.strip().lower()) in parts}
    for row in rows if lost else ():
        for name, part in sorted(lost.items()):
            value = row.fields.get(name)
            if isinstance(value, str | list | dict) and value:
                chosen = ", ".join(f"{role}: {used}" for role, used in found.items())
                raise UserError(
                    f"{row.source}: the column `{name}` may be {part}, but would not be read; set"
                    f" data.columns='{{{chosen}}}' to leave it out, or give it a role there"
                )


def _choose(role: ColumnRole, names: set[str], *, source: str) -> str | None:
    candidates = [name for name in _NAMES[role] if name in names]
    if len(candidates) > 1 and candidates[0] != _NAMES[role][0]:
        raise UserError(
            f"{source}: the columns {_list(set(candidates))} may all be the {role}; set data.columns, such as"
            f" {{prompt: …, {role}: {candidates[0]}}}"
        )
    return candidates[0] if candidates else None


def _list(names: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


def _read_row(row: Row, *, columns: Mapping[ColumnRole, str], turns: Literal["last", "all"]) -> list[Instruction]:
    system = row.text_or_empty(columns["system"]) if "system" in columns else ""
    if (name := columns.get("messages")) is not None:
        row.require(name)
        return _from_turns(read_turns(row, name, system=system), source=row.source, turns=turns)
    prompt, response = columns["prompt"], columns.get("response")
    row.require(prompt)
    if isinstance(row.fields[prompt], list):
        # Prompt and completion as messages.
        if "input" in columns and row.text_or_empty(columns["input"]).strip():
            raise UserError(
                f"{row.source}: `{prompt}` is a conversation, so that `{columns['input']}` would not be read; move it"
                " there, or set data.columns without input"
            )
        completion = () if response is None or row.fields.get(response) is None else row.fields[response]
        both = Row(source=row.source, fields={prompt: [*_as_list(row.fields[prompt]), *_as_list(completion)]})
        return _from_turns(read_turns(both, prompt, system=system), source=row.source, turns=turns)
    return [
        Instruction(
            instruction=row.text(prompt),
            input=row.text_or_empty(columns["input"]) if "input" in columns else "",
            references=row.texts(response) if response is not None else (),
            source=row.source,
            earlier=(Turn("system", system),) if system.strip() else (),
        )
    ]


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [{"role": "assistant", "content": value}]


def _from_turns(found: tuple[Turn, ...], *, source: str, turns: Literal["last", "all"]) -> list[Instruction]:
    """An instruction for each user turn that counts; the turn behind it is its response."""
    ends = [number for number, turn in enumerate(found) if turn.role == "user"]
    return [
        Instruction(
            instruction=found[end].content,
            input="",
            references=tuple(turn.content for turn in found[end + 1 : end + 2]),
            source=source if len(ends) == 1 or turns == "last" else f"{source} turn {end + 1}",
            earlier=found[:end],
        )
        for end in (ends if turns == "all" else ends[-1:])
    ]
