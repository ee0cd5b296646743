"""ROUGE-L and exact match against one or more references, as in the paper's evaluation.

`python -m evaluation.rouge_l --generations FILE` scores one file of generations.
"""

import re
import string
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from rouge_score.tokenizers import DefaultTokenizer

from evaluation.command_options import CommandParser, run_command
from kd.data.rows import read_json_lines
from kd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over responses, ×100."""

    rouge_l: float
    exact_match: float
    num_responses: int


_WORD = re.compile(r"[a-z0-9]+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def rouge_l(response: str, references: Sequence[str]) -> float:
    """F-measure of ROUGE-L with stemming, the best over `references`, from 0 to 1.

    Equal to `rouge_score` to the last bit: its words and stems, another way to the same subsequence.
    """
    words = _stems(response)
    return max(_f_measure(words, _stems(reference)) for reference in references)


def common_subsequence_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence of `a` and `b`.

    One bit for each item of `a`, all of them updated at once for each item of `b`: Crochemore and others, "A fast
    and practical bit-vector algorithm for the longest common subsequence problem" (2001).
    """
    places: dict[Hashable, int] = {}
    for index, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << index
    everywhere = (1 << len(a)) - 1
    # A zero stands where the length grows by one, from the items of `a` before it to those with it.
    state = everywhere
    for item in b:
        if item in places:
            found = state & places[item]
            state = (state + found | state - found) & everywhere
    return len(a) - state.bit_count()


def _f_measure(response: Sequence[str], reference: Sequence[str]) -> float:
    common = common_subsequence_length(reference, response)
    if common == 0:
        return 0.0
    precision, recall = common / len(response), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def _stems(text: str) -> list[str]:
    return [stem for word in _WORD.findall(text.lower()) for stem in _stem(word)]


# Stemming takes most of the time, and texts repeat their words.
@lru_cache(maxsize=2**16)
def _stem(word: str) -> tuple[str, ...]:
    return tuple(_tokenizer().tokenize(word))


@cache
def _tokenizer() -> DefaultTokenizer:
    return DefaultTokenizer(use_stemmer=True)


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
    return " ".join(text.lower().translate(_PUNCTUATION).split())


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
