"""Metrics of a response against its references: ROUGE-L, exact match, accuracy of an extracted answer."""

import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache

from rouge_score.tokenizers import DefaultTokenizer

from kd.errors import UserError

Metric = Callable[[str, Sequence[str]], float]
"""From a response and its references (at least one) to a score from 0 to 1; a higher score is better."""

_WORD = re.compile(r"[a-z0-9]+")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOKENIZER = DefaultTokenizer(use_stemmer=True)
_UNSPACED = (
    ("\u0e00", "\u0eff"),  # Thai, Lao
    ("\u1000", "\u109f"),  # Myanmar
    ("\u1780", "\u17ff"),  # Khmer
    ("\u3005", "\u3007"),  # iteration mark, closing mark and zero among CJK ideographs
    ("\u3040", "\u30ff"),  # Hiragana, Katakana
    ("\u31f0", "\u31ff"),  # Katakana extensions
    ("\u3400", "\u4dbf"),  # CJK ideographs, extension A
    ("\u4e00", "\u9fff"),  # CJK ideographs
    ("\ua9e0", "\ua9ff"),  # Myanmar, extension B
    ("\uaa60", "\uaa7f"),  # Myanmar, extension A
    ("\uf900", "\ufaff"),  # CJK compatibility ideographs
    ("\U0001aff0", "\U0001b16f"),  # Katakana and Hiragana, further extensions
    ("\U00020000", "\U0003ffff"),  # CJK ideographs, other extensions
)
"""First and last characters of scripts without spaces between words."""
_JOINERS = "\u200c\u200d"


def rouge_l(response: str, references: Sequence[str]) -> float:
    """F-measure of ROUGE-L with stemming, the best over `references`, from 0 to 1; bitwise equal to `rouge_score`'s."""
    words = _stems(response)
    return max(_f_measure(words, _stems(reference)) for reference in references)


def rouge_l_unicode(response: str, references: Sequence[str]) -> float:
    """F-measure of ROUGE-L over `unicode_tokens`, the best over `references`, from 0 to 1.

    In plain English text it differs from `rouge_l` in stemming alone: `rouge_l` counts "runs" as "run", and this one
    does not. Elsewhere tokens differ too: `rouge_l` cuts "café" to "caf", and sees nothing of "北京".
    """
    tokens = unicode_tokens(response)
    return max(_f_measure(tokens, unicode_tokens(reference)) for reference in references)


def unicode_tokens(text: str) -> list[str]:
    """Words of letters, digits and their marks, up to case and compatibility forms (NFKC).

    In scripts without spaces between words (`_UNSPACED`), each character with its marks is a token.
    """
    tokens: list[str] = []
    is_open = False
    for char in unicodedata.normalize("NFKC", text).casefold():
        # A zero-width joiner or non-joiner is inside a word, such as of Hindi or Persian.
        if char in _JOINERS:
            continue
        category = unicodedata.category(char)[0]
        if category not in "LNM":
            is_open = False
        elif category == "M" and tokens:
            # An accent or a vowel sign belongs to the letter before it.
            tokens[-1] += char
        elif any(first <= char <= last for first, last in _UNSPACED):
            tokens.append(char)
            is_open = False
        elif is_open:
            tokens[-1] += char
        else:
            tokens.append(char)
            is_open = True
    return tokens


def describe_unread(references: Iterable[Sequence[str]]) -> str | None:
    """One line if rougeL finds no word in some references, so that any response to them scores 0; else None."""
    rows = list(references)
    unread = sum(not any(_stems(reference) for reference in row) for row in rows)
    if not unread:
        return None
    return (
        f"rougeL reads Latin letters and digits only, and {unread} of {len(rows)} rows have none in their references:"
        " it is 0 there; use the metric rougeL_unicode"
    )


def common_subsequence_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence of `a` and `b`.

    One bit for each item of `a`, all of them updated at once for each item of `b`: Crochemore and others, "A fast
    and practical bit-vector algorithm for the longest common subsequence problem" (2001).
    """
    positions: defaultdict[Hashable, int] = defaultdict(int)
    for index, item in enumerate(a):
        positions[item] |= 1 << index
    all_bits = (1 << len(a)) - 1
    # Bit i is 0 if item i of `a` makes the subsequence longer by one.
    state = all_bits
    for item in b:
        found = state & positions[item]
        state = (state + found | state - found) & all_bits
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
    return tuple(_TOKENIZER.tokenize(word))


def exact_match(response: str, references: Sequence[str]) -> float:
    """1 where the response equals a reference up to case, punctuation, white space and width, else 0."""
    return float(any(_normalise(response) == _normalise(reference) for reference in references))


def answer_accuracy(pattern: str) -> Metric:
    """The metric that compares an answer extracted from the response with those of the references.

    Args:
        pattern: a regular expression; the first group of its last match is the answer (without a group, the match).
            Answers are compared up to case, white space, width and punctuation at their end: -7 is not 7, 1.5 is not
            15, and 10² is not 102.
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
        if matched is None:
            return None
        return " ".join(_same_width(matched).lower().split()).rstrip(".,;:!?。 ")

    def accuracy(response: str, references: Sequence[str]) -> float:
        given = answer(response)
        return float(given is not None and any(given == answer(reference) for reference in references))

    return accuracy


METRICS: dict[str, Metric] = {"rougeL": rouge_l, "rougeL_unicode": rouge_l_unicode, "exact_match": exact_match}
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
    return " ".join(_same_width(text).lower().translate(_PUNCTUATION).split())


def _same_width(text: str) -> str:
    """Composed characters, and full-width ones as the usual ones; NFKC would make 102 of 10²."""
    usual = (unicodedata.normalize("NFKC", char) if "\uff00" <= char <= "\uffef" else char for char in text)
    return unicodedata.normalize("NFC", "".join(usual))
