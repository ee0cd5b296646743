"""ROUGE-L and exact match against one or more references, as in the paper's evaluation.

`python -m evaluation.rouge_l --generations FILE` scores one file of generations.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.command_options import CommandParser, run_command
from kd.data.rows import read_json_lines
from kd.errors import UserError
from kd.text_metrics import exact_match, rouge_l


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over responses, ×100."""

    rouge_l: float
    exact_match: float
    num_responses: int


def score(responses: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """Mean scores of responses against their references.

    Raises:
        ValueError: no responses, or not one list of references for each.
    """
    if not responses:
        raise ValueError("no responses to score")
    pairs = list(zip(responses, references, strict=True))
    return Scores(
        rouge_l=100 * sum(rouge_l(*pair) for pair in pairs) / len(pairs),
        exact_match=100 * sum(exact_match(*pair) for pair in pairs) / len(pairs),
        num_responses=len(pairs),
    )


def read_generations(path: Path) -> tuple[list[str], list[tuple[str, ...]]]:
    """Responses and references of a file with one JSON object a line.

    Raises:
        UserError: no such file, or a line without `response` and at least one of `references`.
    """
    responses, references = [], []
    for row in read_json_lines(path):
        texts = row.texts("references")
        if "response" not in row.fields or not texts:
            raise UserError(f"{row.source}: expected `response` and `references`; give a file of evaluate.py")
        responses.append(row.text_or_empty("response"))
        references.append(texts)
    return responses, references


def _score_file(argv: Sequence[str] | None) -> None:
    parser = CommandParser(prog="python -m evaluation.rouge_l", description="Score a file of generations.")
    parser.add_argument(
        "--generations", type=Path, required=True, metavar="FILE", help="JSON lines: response, references"
    )
    scores = score(*read_generations(parser.parse_args(argv).generations))
    print(f"ROUGE-L {scores.rouge_l:.2f}   exact match {scores.exact_match:.2f}   {scores.num_responses} responses")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores of the file that the command line names, and return the exit code."""
    return run_command(lambda: _score_file(argv))


if __name__ == "__main__":
    sys.exit(main())
