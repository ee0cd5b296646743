"""Instructions: what a model is asked, and the answers it may learn from."""

from dataclasses import dataclass

from kd.data.rows import read_rows


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One request; `references` is empty where the row has no `output`.

    `source` is "path:line", or "path:row" for .json and .parquet files, counted from 1.
    """

    instruction: str
    input: str
    references: tuple[str, ...]
    source: str


def read_instructions(source: str) -> list[Instruction]:
    """Read `instruction`, `input` (optional) and `output` (optional: text or a list of texts) of every row.

    Args:
        source: a .jsonl, .json or .parquet file, or a hub name `org/name[:split]` (split train if none).

    Raises:
        UserError: unreadable source, broken row, empty instruction, empty output; names file and line.
    """
    return [
        Instruction(
            instruction=row.text("instruction"),
            input=row.text_or_empty("input"),
            references=row.texts("output"),
            source=row.source,
        )
        for row in read_rows(source)
    ]
