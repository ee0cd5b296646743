"""Wordings of the instructions and responses of each task family of the demo."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Phrasings:
    """Instructions for one task, and the form of its response."""

    self_contained: tuple[str, ...]
    """Instructions that contain the facts and need no input."""
    about_input: tuple[str, ...]
    """Instructions whose facts are in the input."""
    input_form: str
    answer_form: str


PHRASINGS: dict[str, Phrasings] = {
    "odd_one_out": Phrasings(
        self_contained=(
            "Which word is not {a_usual}: {words}?",
            "Find the odd one out of these {usual}s: {words}.",
            "One of these {usual}s is wrong: {words}.",
        ),
        about_input=(
            "Which word is not {a_usual}?",
            "Find the odd one out of these {usual}s.",
            "Which one does not belong to the {usual}s?",
        ),
        input_form="Words: {words}",
        answer_form="Odd: {answer}",
    ),
    "category": Phrasings(
        self_contained=(
            "What is {a_word}?",
            "What kind of thing is {a_word}?",
            "Name the category of the word {word}.",
            "Tell me what {a_word} is.",
            "To which group does {a_word} belong?",
        ),
        about_input=(
            "What kind of thing is this?",
            "Name the category of the word.",
            "To which group does this belong?",
            "Classify the word.",
            "Tell me what this is.",
        ),
        input_form="Word: {word}",
        answer_form="It is {answer}",
    ),
    "membership": Phrasings(
        self_contained=("Is {wanted} in this list: {words}?", "Does the list {words} contain {wanted}?"),
        about_input=(
            "Is {wanted} in the list?",
            "Does the list contain {wanted}?",
            "Check if {wanted} is one of these.",
        ),
        input_form="List: {words}",
        answer_form="{answer}",
    ),
    "count": Phrasings(
        self_contained=("How many words are there: {words}?", "Count these words: {words}."),
        about_input=("How many words are there?", "Count the words.", "Give the number of words."),
        input_form="Words: {words}",
        answer_form="Count: {answer}",
    ),
    "reverse": Phrasings(
        self_contained=("Reverse this list: {words}.", "Write these words backwards: {words}."),
        about_input=("Reverse the list.", "Write the list backwards.", "Turn the order around."),
        input_form="List: {words}",
        answer_form="Reversed: {answer}",
    ),
    "nth_item": Phrasings(
        self_contained=(
            "What is the {position} word of this list: {words}?",
            "Give the {position} item: {words}.",
        ),
        about_input=(
            "What is the {position} word?",
            "Give the {position} item of the list.",
            "Pick the {position} one.",
        ),
        input_form="List: {words}",
        answer_form="Item: {answer}",
    ),
    "sort_words": Phrasings(
        self_contained=("Sort these words: {words}.", "Put in alphabetical order: {words}."),
        about_input=("Sort the words.", "Put the words in alphabetical order.", "Order these from A to Z."),
        input_form="Words: {words}",
        answer_form="Sorted: {answer}",
    ),
    "extreme_number": Phrasings(
        self_contained=("Which number is the {wanted}: {numbers}?", "Find the {wanted} of these: {numbers}."),
        about_input=(
            "Which number is the {wanted}?",
            "Find the {wanted} number.",
            "Give the {wanted} of these.",
        ),
        input_form="Numbers: {numbers}",
        answer_form="The {wanted}: {answer}",
    ),
    "extract": Phrasings(
        self_contained=("Name the {wanted} in this sentence: {sentence}", "Find the {wanted}: {sentence}"),
        about_input=("Name the {wanted} in the sentence.", "Find the {wanted}.", "Extract the {wanted}."),
        input_form="Sentence: {sentence}",
        answer_form="The {wanted}: {answer}",
    ),
    "context": Phrasings(
        self_contained=("Read this: {text} Where is the {thing}?", "Find the {thing}: {text}"),
        about_input=("Where is the {thing}?", "Which box holds the {thing}?", "Find the {thing}."),
        input_form="Text: {text}",
        answer_form="The {answer} box",
    ),
    "conversion": Phrasings(
        self_contained=(
            "Convert {amount} {larger} to {smaller}.",
            "How many {smaller} are {amount} {larger}?",
            "Write {amount} {larger} in {smaller}.",
            "What is {amount} {larger} in {smaller}?",
        ),
        about_input=(
            "Convert to {smaller}.",
            "How many {smaller} is this?",
            "Write the amount in {smaller}.",
            "Express this in {smaller}.",
        ),
        input_form="Amount: {amount} {larger}",
        answer_form="It is {answer} {smaller}",
    ),
    "plural": Phrasings(
        self_contained=(
            "What is the plural of {word}?",
            "Give the plural of {word}.",
            "Write the plural form of the word {word}.",
            "One {word}, but two what?",
            "How do you say more than one {word}?",
            "Make {word} plural.",
            "Turn {word} into a plural.",
            "Change {word} to its plural form.",
        ),
        about_input=(
            "What is the plural of this word?",
            "Give the plural.",
            "Write the plural form.",
            "Make the word plural.",
            "Turn the noun into a plural.",
            "How do you say more than one?",
            "Change the word to its plural form.",
            "Name the plural of the noun.",
        ),
        input_form="Word: {word}",
        answer_form="Plural: {answer}",
    ),
    "past_tense": Phrasings(
        self_contained=(
            "What is the past tense of {word}?",
            "Give the past tense of {word}.",
            "Write the past form of the verb {word}.",
            "Today I {word}, but yesterday I what?",
            "Put {word} in the past tense.",
            "How do you say {word} in the past?",
            "Turn {word} into the past tense.",
            "Change {word} to its past form.",
        ),
        about_input=(
            "What is the past tense of this verb?",
            "Give the past tense.",
            "Write the past form.",
            "Put the verb in the past tense.",
            "Turn the verb into the past tense.",
            "How do you say this in the past?",
            "Change the verb to its past form.",
            "Name the past tense of the verb.",
        ),
        input_form="Verb: {word}",
        answer_form="Past: {answer}",
    ),
    "opposite": Phrasings(
        self_contained=(
            "What is the opposite of {word}?",
            "Give the opposite of {word}.",
            "Write a word that means the opposite of {word}.",
            "If it is not {word}, what is it?",
            "Name an antonym of {word}.",
            "Which word is the contrary of {word}?",
            "Find the opposite of the word {word}.",
            "Something is not {word}. Then it is what?",
        ),
        about_input=(
            "What is the opposite of this word?",
            "Give the opposite.",
            "Write a word that means the opposite.",
            "Name an antonym.",
            "Which word is the contrary?",
            "Find the opposite of the word.",
            "Give an antonym of the adjective.",
            "Turn the word into its opposite.",
        ),
        input_form="Word: {word}",
        answer_form="Opposite: {answer}",
    ),
    "letter": Phrasings(
        self_contained=(
            "What is the {wanted} letter of {word}?",
            "Give the {wanted} letter of {word}.",
            "Which letter comes {wanted} in {word}?",
            "Write the {wanted} letter of the word {word}.",
            "Name the {wanted} letter in {word}.",
        ),
        about_input=(
            "What is the {wanted} letter of this word?",
            "Give the {wanted} letter.",
            "Which letter comes {wanted}?",
            "Write the {wanted} letter of the word.",
            "Name the {wanted} letter.",
        ),
        input_form="Word: {word}",
        answer_form="Letter: {answer}",
    ),
}
