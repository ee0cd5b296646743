"""ROUGE-L and exact match against one or more references, as in the paper's evaluation.

`python -m evaluation.rouge_l --generations FILE` scores one file of generations.
"""

import argparse
import json
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer

from kd.errors import EXIT_CODE, UserError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over responses, ×100."""

    rouge_l: float
    exact_match: float
    num_responses: int


@cache
def _scorer() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(response: str, references: Sequence[str]) -> float:
    """F-measure of ROUGE-L with stemming, the best over `references`, from 0 to 1."""
    return float(max(_scorer().score(reference, response)["rougeL"].fmeasure for reference in references))


def exact_match(response: str, references: Sequence[str]) -> bool:
    """Whether the response equals a reference but for case, punctuation and white space."""
    return any(_normalise(response) == _normalise(reference) for reference in references)


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


def _normalise(text: str) -> str:
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def read_generations(path: Path) -> tuple[list[str], list[list[str]]]:
    """Responses and references of a file with one JSON object a line.

    Raises:
        UserError: no such file, or a line without `response` and at least one of `references`.
    """
    responses, references = [], []
    try:
        # Not splitlines(): a response may hold characters that Python takes for the end of a line.
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file of evaluate.py") from None
    if lines == [""]:
        raise UserError(f"{path}: is empty; expected one generation a line")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            responses.append(str(row["response"]))
            references.append([str(reference) for reference in row["references"]])
        except (ValueError, KeyError, TypeError):
            references.append([])
        if not references[-1]:
            raise UserError(f"{path}:{number}: expected a JSON object with response and a list of references")
    return responses, references


def main() -> int:
    """Print the scores of the file that the command line names, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.rouge_l", description="Score a file of generations.")
    parser.add_argument(
        "--generations", type=Path, required=True, metavar="FILE", help="JSON lines: response, references"
    )
    arguments = parser.parse_args()
    try:
        scores = score(*read_generations(arguments.generations))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CODE
    print(f"ROUGE-L {scores.rouge_l:.2f}   exact match {scores.exact_match:.2f}   {scores.num_responses} responses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
