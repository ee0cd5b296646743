"""The closed vocabulary of the demo's data."""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "sheep", "goat", "lion", "wolf"),
    "fruit": ("apple", "pear", "plum", "grape", "lemon", "cherry", "mango", "peach"),
    "tool": ("hammer", "saw", "drill", "axe", "chisel", "shovel", "rake", "wrench"),
    "vehicle": ("car", "bus", "train", "truck", "boat", "ship", "tram", "plane"),
    "garment": ("hat", "coat", "shirt", "sock", "shoe", "scarf", "glove", "belt"),
    "instrument": ("piano", "drum", "flute", "violin", "guitar", "harp", "trumpet", "banjo"),
    "flower": ("rose", "tulip", "daisy", "lily", "poppy", "orchid", "iris", "marigold"),
    "job": ("nurse", "baker", "teacher", "farmer", "pilot", "judge", "painter", "cook"),
}

CATEGORY_OF: dict[str, str] = {word: name for name, words in CATEGORIES.items() for word in words}

NOUNS: tuple[str, ...] = tuple(CATEGORY_OF)

PLURALS: dict[str, str] = {
    "dog": "dogs", "cat": "cats", "horse": "horses", "cow": "cows", "sheep": "sheep", "wolf": "wolves",
    "apple": "apples", "pear": "pears", "cherry": "cherries", "peach": "peaches", "bus": "buses",
    "car": "cars", "boat": "boats", "truck": "trucks", "hat": "hats", "scarf": "scarves", "shoe": "shoes",
    "daisy": "daisies", "lily": "lilies", "rose": "roses", "nurse": "nurses", "baker": "bakers",
    "mouse": "mice", "goose": "geese", "child": "children", "man": "men", "woman": "women",
    "tooth": "teeth", "foot": "feet", "leaf": "leaves", "knife": "knives", "box": "boxes",
}  # fmt: skip

PAST_TENSES: dict[str, str] = {
    "go": "went", "see": "saw", "eat": "ate", "run": "ran", "give": "gave", "take": "took", "make": "made",
    "write": "wrote", "speak": "spoke", "drive": "drove", "buy": "bought", "bring": "brought",
    "think": "thought", "teach": "taught", "catch": "caught", "find": "found", "sing": "sang",
    "swim": "swam", "drink": "drank", "begin": "began", "fly": "flew", "grow": "grew", "know": "knew",
    "throw": "threw", "walk": "walked", "play": "played", "jump": "jumped", "look": "looked",
    "call": "called", "help": "helped", "cook": "cooked", "open": "opened",
}  # fmt: skip

_OPPOSITE_PAIRS: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("old", "young"), ("happy", "sad"),
    ("light", "dark"), ("high", "low"), ("rich", "poor"), ("strong", "weak"), ("wet", "dry"),
    ("hard", "soft"), ("full", "empty"), ("early", "late"), ("near", "far"), ("loud", "quiet"),
    ("clean", "dirty"),
)  # fmt: skip

OPPOSITES: dict[str, str] = dict(_OPPOSITE_PAIRS) | {right: left for left, right in _OPPOSITE_PAIRS}

# Larger unit, smaller unit, number of smaller units in a larger one.
UNITS: tuple[tuple[str, str, int], ...] = (
    ("weeks", "days", 7), ("feet", "inches", 12), ("hours", "minutes", 60), ("pounds", "ounces", 16),
    ("yards", "feet", 3), ("metres", "centimetres", 100),
)  # fmt: skip

NAMES: tuple[str, ...] = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry",
    "Iris", "Jack", "Kate", "Leo", "Maria", "Noah", "Olga", "Paul",
)  # fmt: skip

CITIES: tuple[str, ...] = (
    "Paris", "Rome", "London", "Berlin", "Madrid", "Vienna", "Oslo", "Dublin",
    "Athens", "Prague", "Cairo", "Tokyo",
)  # fmt: skip

COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "black", "white", "brown", "pink")

HIDDEN_THINGS: tuple[str, ...] = ("key", "coin", "ring", "letter", "ball", "pen", "watch", "map")

COUNT_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")
