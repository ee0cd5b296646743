"""Metrics of texts: ROUGE-L against the library that defines it, exact match, accuracy of an extracted answer."""

from collections.abc import Sequence

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from kd.errors import UserError
from kd.text_metrics import (
    METRICS,
    answer_accuracy,
    common_subsequence_length,
    describe_unread,
    exact_match,
    find_metric,
    rouge_l,
    rouge_l_unicode,
    unicode_tokens,
)

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


def test_rouge_l_by_hand() -> None:
    # The longest common subsequence "the cat on mat": 4 words of 5 in the response, of 6 in the reference.
    precision, recall = 4 / 5, 4 / 6
    expected = 2 * precision * recall / (precision + recall)
    assert rouge_l("the cat lay on mat", ["the cat sat on the mat"]) == pytest.approx(expected)
    assert rouge_l("b a", ["a b"]) == pytest.approx(0.5)
    assert rouge_l("Running DOGS", ["runs dog"]) == 1
    assert rouge_l("red house", ["a green tree", "red"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("response", ["", "  \n", "!?"])
def test_a_response_without_words_scores_zero(response: str) -> None:
    assert rouge_l(response, ["something"]) == exact_match(response, ["something"]) == 0


def test_exact_match_ignores_case_punctuation_and_white_space() -> None:
    assert exact_match(" The  Odd: hat.\n", ["no", "the odd hat"]) == 1
    assert exact_match("the odd hats", ["the odd hat"]) == 0


@pytest.mark.parametrize(
    ("pattern", "response", "references", "expected"),
    [
        pytest.param(r"#### (\S+)", "3 + 4 = 7\n#### 7", ["so #### 7."], 1, id="the group, without its end"),
        pytest.param(r"#### (.+)", "#### New  York", ["#### new york"], 1, id="case and white space"),
        pytest.param(r"#### (\S+)", "#### -7", ["#### 7"], 0, id="another sign"),
        pytest.param(r"#### (\S+)", "#### 1.5", ["#### 15"], 0, id="another point"),
        pytest.param(r"#### (\S+)", "#### 8", ["#### 7"], 0, id="another answer"),
        pytest.param(r"#### (\S+)", "#### 8", ["#### 7", "#### 8"], 1, id="any reference"),
        pytest.param(r"#### (\S+)", "#### 1 #### 7", ["#### 7"], 1, id="the last match"),
        pytest.param(r"#### (\S+)", "7", ["#### 7"], 0, id="no match in the response"),
        pytest.param(r"#### (\S+)", "7", ["7"], 0, id="no match in either"),
        pytest.param(r"-?\d+", "maybe 7, then 12", ["it is 12"], 1, id="without a group"),
        pytest.param(r"answer: (\w+) (\w+)", "answer: a b", ["answer: a c"], 1, id="the first of two groups"),
        pytest.param(r"answer: (\d)?", "answer: x", ["answer: y"], 0, id="a group without a part in the match"),
    ],
)
def test_accuracy_compares_extracted_answers(
    pattern: str, response: str, references: list[str], expected: float
) -> None:
    assert answer_accuracy(pattern)(response, references) == expected


def test_metrics_are_found_by_name() -> None:
    for name, metric in METRICS.items():
        assert find_metric(name) is metric
    assert find_metric("accuracy", answer_pattern="(.)")("a", ["a"]) == 1
    with pytest.raises(UserError, match="the metric accuracy needs an answer pattern"):
        find_metric("accuracy")
    with pytest.raises(UserError, match=r"answer pattern '\(': not a regular expression"):
        find_metric("accuracy", answer_pattern="(")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("It's 3,14 — Ünïcode!", ["it", "s", "3", "14", "ünïcode"]),
        ("北京是首都。", ["北", "京", "是", "首", "都"]),
        ("東京タワーへ行く", ["東", "京", "タ", "ワ", "ー", "へ", "行", "く"]),
        ("GPT在2024年", ["gpt", "在", "2024", "年"]),
        ("한국의 수도", ["한국의", "수도"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("क्\u200dष می\u200cشود", ["क्ष", "میشود"]),
        ("สวัสดี 12", ["ส", "วั", "ส", "ดี", "12"]),
        ("人々\u3007\u3007年", ["人", "々", "\u3007", "\u3007", "年"]),
        ("\uaa60\uaa61", ["\uaa60", "\uaa61"]),
        ("\uff46ull ﬁne", ["full", "fine"]),
        ("café cafe\u0301", ["café", "café"]),
        ("", []),
    ],
)
def test_tokens_of_every_script(text: str, tokens: list[str]) -> None:
    assert unicode_tokens(text) == tokens


def plain_lcs(a: Sequence[str], b: Sequence[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_unicode_rouge_l_is_the_f_measure_of_its_tokens() -> None:
    response, references = "北京是中国的首都", ["首都是北京", "中国的首都是北京市"]
    scores = []
    for reference in references:
        common = plain_lcs(list(response), list(reference))
        scores.append(2 * common / (len(response) + len(reference)))
    assert rouge_l_unicode(response, references) == pytest.approx(max(scores))
    assert rouge_l(response, references) == 0
    assert rouge_l_unicode("北京", ["北京"]) == 1
    # The published one stems: runs is run there.
    assert rouge_l_unicode("A cat runs.", ["a cat runs"]) == rouge_l("A cat runs.", ["a cat runs"]) == 1
    assert rouge_l("runs", ["run"]) == 1 and rouge_l_unicode("runs", ["run"]) == 0


def test_references_that_rouge_l_cannot_read_are_counted() -> None:
    assert describe_unread([["Paris"], ["42"], ["北京", "Beijing"]]) is None
    line = describe_unread([["Paris"], ["北京"], ["Москва"]])
    assert line is not None and line.startswith("rougeL reads Latin letters and digits only, and 2 of 3 rows have none")


def test_other_forms_of_the_same_characters_match() -> None:
    assert exact_match("\uff21BC \uff11\uff12", ["abc 12"]) == 1
    assert exact_match("cafe\u0301", ["café"]) == 1
    assert exact_match("10²", ["102"]) == 0
    assert answer_accuracy("答案(.+)")("答案\uff142。", ["答案42"]) == 1
