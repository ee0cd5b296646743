"""Instructions: a request to a model, and the responses to learn from."""

from dataclasses import dataclass

from kd.data.rows import Row, read_rows
from kd.errors import UserError

# The keys of databricks-dolly-15k.
_OTHER_NAMES = {"context": "input", "response": "output"}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One request; `references` is empty if the row has no `output`, and `source` is that of its `Row`."""

    instruction: str
    input: str
    references: tuple[str, ...]
    source: str


def read_instructions(source: str) -> list[Instruction]:
    """Read `instruction`, `input` (optional) and `output` (optional: one or several texts) of the rows of `read_rows`.

    Raises:
        UserError: unreadable source, broken row, empty instruction or output, or a row with the key `context` or
            `response` and without `input` or `output`.
    """
    return [_read_instruction(row) for row in read_rows(source)]


def _read_instruction(row: Row) -> Instruction:
    for other, name in _OTHER_NAMES.items():
        if row.fields.get(other) and name not in row.fields:
            raise UserError(f"{row.source}: has `{other}` and no `{name}`; rename it to `{name}`, or remove it")
    return Instruction(
        instruction=row.text("instruction"),
        input=row.text_or_empty("input"),
        references=row.texts("output"),
        source=row.source,
    )
