"""Metrics of a response against its references: ROUGE-L, exact match, accuracy of an extracted answer."""

import re
import string
from collections.abc import Callable, Hashable, Sequence
from functools import cache, lru_cache

from rouge_score.tokenizers import DefaultTokenizer

from kd.errors import UserError

Metric = Callable[[str, Sequence[str]], float]
"""From a response and its references (at least one) to a score from 0 to 1; a higher score is better."""

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


def exact_match(response: str, references: Sequence[str]) -> float:
    """1 where the response equals a reference up to case, punctuation and white space, else 0."""
    return float(any(_normalise(response) == _normalise(reference) for reference in references))


def answer_accuracy(pattern: str) -> Metric:
    """The metric that compares an answer extracted from the response with those of the references.

    Args:
        pattern: a regular expression; the first group of its last match is the answer (without a group, the match).
            Answers are compared up to case, white space and punctuation at their end: -7 is not 7, and 1.5 is not 15.
            A text without a match has no answer: it never counts as correct.

    Raises:
        UserError: `pattern` is not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"answer pattern {pattern!r}: not a regular expression ({error}); correct it") from None

    def answer(text: str) -> str | None:
        found = list(compiled.finditer(text))
        matched: str | None = found[-1][1 if compiled.groups else 0] if found else None
        return None if matched is None else " ".join(matched.lower().split()).rstrip(".,;:!? ")

    def accuracy(response: str, references: Sequence[str]) -> float:
        given = answer(response)
        return float(given is not None and any(given == answer(reference) for reference in references))

    return accuracy


METRICS: dict[str, Metric] = {"rougeL": rouge_l, "exact_match": exact_match}
"""Metrics without settings, by the name that configurations, metrics.jsonl and results.json use."""


def find_metric(name: str, *, answer_pattern: str | None = None) -> Metric:
    """The metric of a configuration.

    Raises:
        UserError: accuracy without a pattern, or with one that is not a regular expression.
    """
    if name != "accuracy":
        return METRICS[name]
    if answer_pattern is None:
        raise UserError("the metric accuracy needs an answer pattern, such as '#### (.+)'")
    return answer_accuracy(answer_pattern)


def _normalise(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())
