"""Write the demo's data: few labelled rows, many prompts without a response, and the teacher's training rows."""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from demo.phrasings import PHRASINGS
from demo.task_facts import DRAWS

MAX_MISSES = 200
"""Number of consecutive repeated draws after which a family counts as exhausted."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One instruction with its input (empty if there is none) and its response."""

    instruction: str
    input: str
    output: str


def draw_row(family: str, rng: Random) -> Row:
    """One random row of a task family."""
    facts = DRAWS[family](rng)
    ways = PHRASINGS[family]
    phrasing = rng.choice(ways.self_contained + ways.about_input)
    return Row(
        instruction=phrasing.format_map(facts),
        input=ways.input_form.format_map(facts) if phrasing in ways.about_input else "",
        output=ways.answer_form.format_map(facts),
    )


def distinct_rows(family: str, rng: Random) -> Iterator[Row]:
    """Yield rows that differ in instruction or input, until the family is exhausted."""
    seen: set[tuple[str, str]] = set()
    misses = 0
    while misses < MAX_MISSES:
        row = draw_row(family, rng)
        if (row.instruction, row.input) in seen:
            misses += 1
            continue
        misses = 0
        seen.add((row.instruction, row.input))
        yield row


def split_sizes(total: int) -> list[int]:
    """Number of rows from each family in a split of `total` rows."""
    share, rest = divmod(total, len(DRAWS))
    return [share + (index < rest) for index in range(len(DRAWS))]


def make_splits(sizes: dict[str, int], rng: Random) -> dict[str, list[Row]]:
    """Disjoint, shuffled splits with equal shares of all families, filled in the order of `sizes`."""
    splits: dict[str, list[Row]] = {name: [] for name in sizes}
    for index, family in enumerate(DRAWS):
        rows = distinct_rows(family, rng)
        for name, size in sizes.items():
            wanted = split_sizes(size)[index]
            splits[name].extend(islice(rows, wanted))
    for split in splits.values():
        rng.shuffle(split)
    return splits


def write_rows(path: Path, rows: Iterable[Row], *, labels: bool = True) -> None:
    """Write rows as JSON lines, without `output` if `labels` is false."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            record = {"instruction": row.instruction, "input": row.input}
            if labels:
                record["output"] = row.output
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Write the labelled, prompts, teacher, validation and test rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the five .jsonl files")
    parser.add_argument("--seed", type=int, default=1, help="the same seed writes the same files")
    parser.add_argument("--test", type=int, default=360)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--labelled", type=int, default=150)
    parser.add_argument("--prompts", type=int, default=4000, help="number of rows without a response")
    parser.add_argument("--teacher", type=int, default=10000, help="largest number of rows to train the teacher on")
    args = parser.parse_args()

    rng = Random(args.seed)
    sizes = {
        "test": args.test,
        "validation": args.validation,
        "labelled": args.labelled,
        "rest": args.teacher,
    }
    splits = make_splits(sizes, rng)
    # The teacher is trained on the labelled rows and on the responses to the prompts, the student on the former only.
    teacher = [*splits["labelled"], *splits["rest"]][: args.teacher]
    prompts = splits["rest"][: args.prompts]
    rng.shuffle(teacher)

    args.out.mkdir(parents=True, exist_ok=True)
    write_rows(args.out / "test.jsonl", splits["test"])
    write_rows(args.out / "validation.jsonl", splits["validation"])
    write_rows(args.out / "labelled.jsonl", splits["labelled"])
    write_rows(args.out / "prompts.jsonl", prompts, labels=False)
    write_rows(args.out / "teacher.jsonl", teacher)
    for path in sorted(args.out.glob("*.jsonl")):
        print(f"{path}: {sum(1 for _ in path.open(encoding='utf-8'))} rows, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
