"""ROUGE-L against the library that defines its words and stems, and a plain table."""

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from kd.text_metrics import common_subsequence_length, rouge_l

TEXT = (
    "the a of to and Running runs runner happily happiness happy generously generalisation generalise universities"
    " university 1999 3rd x y co-operate don't e.g. U.S.A. naïve café Straße 東京 ångström résumé flies dying DIED"
    " skies sky news proceed exceed — … ’s & / \\ _under_score CamelCase 42% $5.00 :-)"
)
WORDS = TEXT.split()
SEPARATORS = (" ", "  ", "\n", "\t", ", ", ". ", "-", "\u2028", "\u00a0", "")

NASTY = [
    "", " ", "\n", "\t\r\n", "\x00", "\u2028\u2029", "\ufeff", "\u200b",
    "!", "?!…", "---", "###", "'\"`", "()[]{}", "。、", "_", "__init__",
    "é", "İstanbul", "\u017ftraße", "\u212aelvin and \u212bngström", "ﬁne ﬂow", "ǅ ǆ Ǆ", "e\u0301cole",
    "日本語の文章", "مرحبا بالعالم", "Привет мир", "🙂🙃", "a🙂b", "x\u0000y", "½ ² ³ ①", "٣٤٥",
    "12", "1,000,000.5", "a", "A a A", "the", "-the-", "sses ies ss s ed ing", "y yy yyy yyyy",
    "\\n \\t", "</s> <|endoftext|> [PAD]",
    "ab" * 3000, "9" * 5000, "run " * 800, "run runs running " * 250, "a b " * 500, "word, " * 700, " " * 5000,
    "é " * 900,
]  # fmt: skip


@pytest.fixture(scope="module")
def library() -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=True)


def f_measure(library: RougeScorer, response: str, reference: str) -> float:
    return float(library.score(reference, response)["rougeL"].fmeasure)


def random_text(generator: np.random.Generator) -> str:
    parts = [
        str(generator.choice(WORDS)) + str(generator.choice(SEPARATORS)) for _ in range(int(generator.integers(0, 60)))
    ]
    return "".join(parts)


def test_two_hundred_random_texts_score_as_in_the_library(library: RougeScorer) -> None:
    generator = np.random.default_rng(0)
    pairs = [(random_text(generator), random_text(generator)) for _ in range(200)]
    expected = [f_measure(library, *pair) for pair in pairs]
    assert [rouge_l(response, [reference]) for response, reference in pairs] == expected
    assert np.mean(expected) > 0.1


@pytest.mark.parametrize("index", range(len(NASTY)))
def test_nasty_texts_score_as_in_the_library(library: RougeScorer, index: int) -> None:
    assert len(set(NASTY)) == 50
    text = NASTY[index]
    for other in (text, NASTY[index - 1], "The runner runs a 12th time, to the end."):
        assert rouge_l(text, [other]) == f_measure(library, text, other)
        assert rouge_l(other, [text]) == f_measure(library, other, text)


def test_best_of_many_references_is_the_librarys(library: RougeScorer) -> None:
    generator = np.random.default_rng(1)
    for _ in range(30):
        response = random_text(generator)
        references = [random_text(generator) for _ in range(int(generator.integers(1, 6)))]
        best = library.score_multi(references, response)["rougeL"].fmeasure
        assert rouge_l(response, references) == best == max(f_measure(library, response, text) for text in references)


def plain_length(a: list[int], b: list[int]) -> int:
    """Every prefix of `a` against every prefix of `b`."""
    table = np.zeros((len(a) + 1, len(b) + 1), dtype=int)
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if left == right else max(table[i, j + 1], table[i + 1, j])
    return int(table[-1, -1])


def test_common_subsequences_equal_a_plain_table() -> None:
    generator = np.random.default_rng(2)
    for _ in range(200):
        a, b = (generator.integers(0, generator.integers(1, 9), generator.integers(0, 90)).tolist() for _ in range(2))
        assert common_subsequence_length(a, b) == plain_length(a, b) == common_subsequence_length(b, a)
