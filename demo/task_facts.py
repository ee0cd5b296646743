"""Random facts that fill in the phrasings of each task family."""

from collections.abc import Callable, Mapping
from random import Random

from demo.word_lists import (
    CATEGORIES,
    CATEGORY_OF,
    CITIES,
    COLOURS,
    COUNT_WORDS,
    HIDDEN_THINGS,
    NAMES,
    NOUNS,
    OPPOSITES,
    PAST_TENSES,
    PLURALS,
    UNITS,
)

Facts = Mapping[str, str]
Draw = Callable[[Random], Facts]


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _listed(words: list[str]) -> str:
    return ", ".join(words)


def _odd_one_out(rng: Random) -> Facts:
    usual, unusual = rng.sample(sorted(CATEGORIES), 2)
    odd = rng.choice(CATEGORIES[unusual])
    words = [*rng.sample(CATEGORIES[usual], 3), odd]
    rng.shuffle(words)
    return {"words": _listed(words), "a_usual": _article(usual), "usual": usual, "answer": odd}


def _category(rng: Random) -> Facts:
    word = rng.choice(NOUNS)
    return {"word": word, "a_word": _article(word), "answer": _article(CATEGORY_OF[word])}


def _membership(rng: Random) -> Facts:
    words = rng.sample(NOUNS, 4)
    present = rng.random() < 0.5
    wanted = rng.choice(words[:3]) if present else words[3]
    return {
        "words": _listed(words[:3]),
        "wanted": wanted,
        "answer": "Yes, it is" if present else "No, it is not",
    }


def _count(rng: Random) -> Facts:
    words = rng.sample(NOUNS, rng.randint(1, 5))
    return {"words": _listed(words), "answer": COUNT_WORDS[len(words)]}


def _reverse(rng: Random) -> Facts:
    words = rng.sample(NOUNS, 3)
    return {"words": _listed(words), "answer": _listed(words[::-1])}


def _nth_item(rng: Random) -> Facts:
    words = rng.sample(NOUNS, 4)
    position, answer = rng.choice((("first", words[0]), ("second", words[1]), ("last", words[-1])))
    return {"words": _listed(words), "position": position, "answer": answer}


def _sort_words(rng: Random) -> Facts:
    # One category per list: the order of eight words is learnt from far fewer rows than the order of all 64.
    words = rng.sample(CATEGORIES[rng.choice(("animal", "fruit", "vehicle"))], 3)
    return {"words": _listed(words), "answer": _listed(sorted(words))}


def _extreme_number(rng: Random) -> Facts:
    numbers = rng.sample(range(1, 31), 3)
    wanted = rng.choice(("largest", "smallest"))
    answer = max(numbers) if wanted == "largest" else min(numbers)
    return {"numbers": _listed([str(number) for number in numbers]), "wanted": wanted, "answer": str(answer)}


def _extract(rng: Random) -> Facts:
    name, city, thing = rng.choice(NAMES), rng.choice(CITIES), rng.choice(CATEGORIES["garment"])
    wanted, answer = rng.choice((("person", name), ("city", city), ("item", thing)))
    sentence = f"Today {name} bought {_article(thing)} in {city}."
    return {"sentence": sentence, "wanted": wanted, "answer": answer}


def _context(rng: Random) -> Facts:
    things, colours = rng.sample(HIDDEN_THINGS, 2), rng.sample(COLOURS, 2)
    asked = rng.randrange(2)
    places = [f"the {thing} is in the {colour} box" for thing, colour in zip(things, colours, strict=True)]
    return {"text": f"Here {places[0]} and {places[1]}.", "thing": things[asked], "answer": colours[asked]}


def _conversion(rng: Random) -> Facts:
    larger, smaller, factor = rng.choice(UNITS)
    amount = rng.randint(2, 9)
    return {"amount": str(amount), "larger": larger, "smaller": smaller, "answer": str(amount * factor)}


def _lookup(table: Mapping[str, str]) -> Draw:
    words = sorted(table)

    def draw(rng: Random) -> Facts:
        word = rng.choice(words)
        return {"word": word, "answer": table[word]}

    return draw


def _letter(rng: Random) -> Facts:
    word = rng.choice(NOUNS[:32])
    wanted, answer = rng.choice((("first", word[0]), ("last", word[-1])))
    return {"word": word, "wanted": wanted, "answer": answer}


DRAWS: dict[str, Draw] = {
    "odd_one_out": _odd_one_out,
    "category": _category,
    "membership": _membership,
    "count": _count,
    "reverse": _reverse,
    "nth_item": _nth_item,
    "sort_words": _sort_words,
    "extreme_number": _extreme_number,
    "extract": _extract,
    "context": _context,
    "conversion": _conversion,
    "plural": _lookup(PLURALS),
    "past_tense": _lookup(PAST_TENSES),
    "opposite": _lookup(OPPOSITES),
    "letter": _letter,
}
