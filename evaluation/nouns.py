"""The words of the set "objects": nouns, colours and numbers."""

from __future__ import annotations

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = {2: "two", 3: "three", 4: "four"}

# Things that are made in many colours.
THINGS = (
    *("kettle", "teapot", "mug", "bowl", "jug", "bottle", "lunchbox", "basket", "bucket", "suitcase", "backpack"),
    *("handbag", "wallet", "umbrella", "hat", "glove", "boot", "sandal", "scarf", "jacket", "pillow", "towel"),
    *("armchair", "stool", "table", "bookshelf", "lamp", "candle", "vase", "clock", "radio", "telephone", "camera"),
    *("guitar", "drum", "trumpet", "kite", "balloon", "notebook", "pencil", "bicycle", "scooter", "car"),
    *("van", "tractor", "canoe", "tent", "helmet", "whistle", "ladder"),
)
# Animals, plants and food, which a prompt gives no colour.
LIVING = (
    *("cat", "dog", "horse", "cow", "goat", "rabbit", "hedgehog", "squirrel", "owl", "duck", "penguin", "turtle"),
    *("frog", "butterfly", "snail", "cactus", "sunflower", "mushroom", "pumpkin", "pineapple", "banana", "pear"),
)
_PLURALS = {
    "bookshelf": "bookshelves",
    "scarf": "scarves",
    "butterfly": "butterflies",
    "cactus": "cacti",
}


def plural(noun: str) -> str:
    """The plural of one of these nouns, or a regular one."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(phrase: str) -> str:
    """A phrase with "a" or "an"."""
    return f"{'an' if phrase[:1].lower() in 'aeiou' else 'a'} {phrase}"
