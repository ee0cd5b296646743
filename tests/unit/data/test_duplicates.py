from pathlib import Path

import pytest

from kd.data.encoding import describe_duplicates, find_duplicates
from kd.data.instructions import Instruction, read_instructions

DOLLY = Path(__file__).parents[4] / "shared" / "data" / "dolly"


def instruction(text: str, *references: str, line: int, input: str = "") -> Instruction:
    return Instruction(instruction=text, input=input, references=references, source=f"rows.jsonl:{line}")


def test_duplicates_repeat_instruction_and_input() -> None:
    train = [instruction("a", line=1), instruction("a", "x", input="b", line=2), instruction("a", line=3)]
    validation = [
        instruction("a", "other answer", line=11),
        instruction("a", input="c", line=12),
        instruction("a", input="b", line=13),
    ]

    duplicates = find_duplicates(train, validation=validation)

    assert duplicates == [("rows.jsonl:1", "rows.jsonl:11"), ("rows.jsonl:2", "rows.jsonl:13")]
    assert describe_duplicates(duplicates, shown=1) == (
        "2 validation rows repeat a training row: rows.jsonl:11 repeats rows.jsonl:1, … (1 shown)"
    )


@pytest.mark.skipif(not DOLLY.is_dir(), reason=f"the Dolly rows are not at {DOLLY}")
def test_dolly_repeats_27_training_rows_in_validation() -> None:
    train = read_instructions(str(DOLLY / "train.jsonl"))
    validation = read_instructions(str(DOLLY / "valid.jsonl"))

    assert (len(train), len(validation)) == (11435, 1000)
    assert len(find_duplicates(train, validation=validation)) == 27
