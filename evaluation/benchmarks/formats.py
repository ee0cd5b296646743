"""The files in which the authors of a benchmark published it, read as instructions.

Texts are unchanged. An instruction without `references` had an empty output in its file. All readers raise a UserError
if a file cannot be read or a row is broken.
"""

from dataclasses import dataclass
from pathlib import Path

from evaluation.results import read_json
from kd.data.instructions import Instruction
from kd.data.rows import Row, read_rows
from kd.errors import UserError

NUM_TEST_INSTANCES = 100
"""Of each task of natural-instructions: its authors test on the first 100 (splits/README.md there)."""


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a format is read from: a file, directory or hub name, and the second file that some formats need."""

    source: str
    companion: Path | None = None


def read_row_format(source: str) -> list[Instruction] | None:
    """The project's own format, `instruction`, `input` and `output`; None if the source has another."""
    if Path(source).is_dir():
        return None
    rows = read_rows(source)
    return [_instruction(row) for row in rows] if "output" in rows[0].fields else None


def read_dolly(original: Original) -> list[Instruction]:
    """databricks-dolly-15k: `instruction`, `context`, `response`."""
    return [_instruction(row, input="context", output="response") for row in read_rows(original.source)]


def read_self_instruct(original: Original) -> list[Instruction]:
    """Self-Instruct's user_oriented_instructions.jsonl: `instruction`, and `instances` of `input` and `output`.

    unnatural-instructions' core_data.jsonl has the same layout; its `constraints` are left out.
    """
    return [
        _instruction(instance, instruction=row.text("instruction"))
        for row in read_rows(original.source)
        for instance in _nested(row, "instances")
    ]


def read_fastchat(original: Original) -> list[Instruction]:
    """FastChat's Vicuna question.jsonl (`text`, or the first of `turns`) with one model's responses as companion.

    The responses have a `question_id` and `text`, or the first turn of the first of `choices`.

    Raises:
        UserError: no companion, or a question without a response.
    """
    if original.companion is None:
        raise UserError("FastChat's questions come without responses; give --companion answer_gpt35.jsonl, or another")
    responses = {_question_id(row): _response(row) for row in read_rows(str(original.companion))}
    instructions = []
    for row in read_rows(original.source):
        identifier = _question_id(row)
        if identifier not in responses:
            raise UserError(
                f"{original.companion}: has no response to question {identifier} ({row.source}); give a complete file"
            )
        instructions.append(
            Instruction(
                instruction=_first_turn(row),
                input="",
                references=(responses[identifier],),
                source=row.source,
            )
        )
    return instructions


def read_natural_instructions(original: Original) -> list[Instruction]:
    """The test instances of natural-instructions: `Definition`, and `input` and `output` of `Instances`.

    The source is the directory that holds tasks/ and splits/default/test_tasks.txt; a companion stands in for the
    latter, with the name of a task on each line.
    """
    directory = Path(original.source)
    listing = original.companion or directory / "splits" / "default" / "test_tasks.txt"
    try:
        tasks = listing.read_text(encoding="utf-8").split()
    except OSError as error:
        raise UserError(
            f"{listing}: cannot be read ({error.strerror}); give the directory of natural-instructions as --source"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{listing}: is no UTF-8 text; expected the name of a task on each line") from None
    instructions = []
    for task in tasks:
        path = directory / "tasks" / f"{task}.json"
        row = Row(source=str(path), fields=read_json(path, advice="get this task of natural-instructions again"))
        definitions = row.texts("Definition")
        if not definitions:
            raise UserError(f"{row.source}: expected `Definition`, what the task asks for, found none; get it again")
        instances = _nested(row, "Instances")[:NUM_TEST_INSTANCES]
        instructions += [_instruction(instance, instruction=definitions[0]) for instance in instances]
    return instructions


def _instruction(
    row: Row, *, instruction: str | None = None, input: str = "input", output: str = "output"
) -> Instruction:
    """`instruction` as given or from the row's key of that name; `input` and `output` are keys."""
    return Instruction(
        instruction=row.text("instruction") if instruction is None else instruction,
        input=row.text_or_empty(input),
        references=_references(row, output),
        source=row.source,
    )


def _references(row: Row, name: str) -> tuple[str, ...]:
    """The texts of a field without the blank ones: some published outputs are empty."""
    value = row.fields.get(name)
    single = [Row(source=row.source, fields={name: text}) for text in (value if isinstance(value, list) else [value])]
    return tuple(text for text in (part.text_or_empty(name) for part in single) if text.strip())


def _nested(row: Row, name: str) -> list[Row]:
    value = row.fields.get(name)
    if not isinstance(value, list) or not all(isinstance(part, dict) for part in value):
        raise UserError(
            f"{row.source}: expected `{name}`, a list of objects; give the file as its authors published it"
        )
    return [Row(source=f"{row.source}, {name} {number}", fields=part) for number, part in enumerate(value, start=1)]


def _question_id(row: Row) -> int:
    value = row.fields.get("question_id")
    if not isinstance(value, int):
        raise UserError(f"{row.source}: expected `question_id`, a number; give a file of FastChat's evaluation")
    return value


def _response(row: Row) -> str:
    choices = _nested(row, "choices") if "choices" in row.fields else [row]
    if not choices:
        raise UserError(f"{row.source}: `choices` is an empty list; give a complete file of FastChat's evaluation")
    return _first_turn(choices[0])


def _first_turn(row: Row) -> str:
    if "text" in row.fields:
        return row.text("text")
    turns = row.texts("turns")
    if not turns:
        raise UserError(f"{row.source}: expected `text` or `turns`; give a file of FastChat's evaluation")
    return turns[0]
