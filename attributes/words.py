"""The words of captions, and a parser from a caption to its scene."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .world import COLOURS, OPPOSITE, SHAPES, Group, Scene

NUMBERS = {1: ("one", "a single", "1"), 2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left of", "on the left side of"),
    "right": ("to the right of", "right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of", "higher than"),
    "below": ("below", "under", "beneath", "underneath"),
}
POSITION_WORDS = {
    "left": ("on the left", "at left", "on the left side"),
    "right": ("on the right", "at right", "on the right side"),
    "above": ("at the top", "in the upper part"),
    "below": ("at the bottom", "in the lower part"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
BACKGROUND_WORDS = {"white": ("white",), "gray": ("gray", "grey"), "black": ("black",)}

_COUNTS = {phrase.split()[-1]: count for count, phrases in NUMBERS.items() for phrase in phrases} | {"a": 1, "an": 1}
_SIZES = {word: size for size, words in SIZE_WORDS.items() for word in words}
_BACKGROUNDS = {word: background for background, words in BACKGROUND_WORDS.items() for word in words}
_SHAPES = {word: shape for shape in SHAPES for word in (shape, shape + "s")}


class CaptionError(ValueError):
    """A caption does not determine a scene: a count, a colour or a relation is missing."""


def _pattern(phrases: Mapping[str, tuple[str, ...]]) -> re.Pattern[str]:
    """Match any of the phrases as whole words, longer ones first."""
    every = sorted((phrase for group in phrases.values() for phrase in group), key=len, reverse=True)
    return re.compile(r"\b(" + "|".join(map(re.escape, every)) + r")\b")


_RELATION, _POSITION = _pattern(RELATION_WORDS), _pattern(POSITION_WORDS)
_RELATION_OF = {phrase: relation for relation, phrases in RELATION_WORDS.items() for phrase in phrases}
_POSITION_OF = {phrase: position for position, phrases in POSITION_WORDS.items() for phrase in phrases}


def parse_caption(caption: str) -> Scene:
    """Parse a caption.

    Args: caption, one or two groups with a count, a colour and a shape each, and the position of the first relative
        to the second: "three red circles to the left of a blue star".
    Returns: the scene; background and sizes are "" unless the caption names them.
    Raises: CaptionError with the missing attribute.
    """
    text = " ".join(re.sub(r"[^\w\s]", " ", caption.lower()).split())
    nouns = list(re.finditer(r"\b(" + "|".join(_SHAPES) + r")\b", text))
    if not 1 <= len(nouns) <= 2:
        raise CaptionError(f"{caption!r} names {len(nouns)} shapes; it must name one or two of {', '.join(SHAPES)}")
    ends = [noun.end() for noun in nouns]
    # A colour may follow its noun ("two stars in red"): the words of a group extend to the count of the next one.
    groups = []
    for index, noun in enumerate(nouns):
        before = text[(ends[index - 1] if index else 0) : noun.start()]
        after = text[noun.end() : nouns[index + 1].start() if index + 1 < len(nouns) else len(text)]
        groups.append(_group(before.split(), noun[1], after.split(), caption))
    backgrounds = [_BACKGROUNDS[word] for word in text.split() if word in _BACKGROUNDS]
    return Scene(tuple(groups), _relation(text, nouns, caption), backgrounds[0] if backgrounds else "")


def _group(before: list[str], noun: str, after: list[str], caption: str) -> Group:
    """One group, from the words before its noun, the nearest first, and the words after it."""
    colour = next((word for word in reversed(before) if word in COLOURS), "")
    # A colour after the noun belongs to this group only if no other count precedes it.
    tail = after[: next((i for i, word in enumerate(after) if word in _COUNTS), len(after))]
    late = next((word for word in tail if word in COLOURS), "")
    if before and before[-1] not in COLOURS:
        colour = late or colour
    count = next((_COUNTS[word] for word in reversed(before) if word in _COUNTS), 0)
    size = next((_SIZES[word] for word in reversed(before) if word in _SIZES), "")
    for value, what in ((count, "how many"), (colour, "in which colour")):
        if not value:
            raise CaptionError(f"{caption!r} does not say {what} for its {noun}")
    return Group(count, colour, _SHAPES[noun], size)


def _relation(text: str, nouns: list[re.Match[str]], caption: str) -> str:
    """The position of the first group relative to the second, "" for one group."""
    if len(nouns) == 1:
        return ""
    between = _RELATION.search(text, nouns[0].end(), nouns[1].start())
    if between:
        return _RELATION_OF[between[1]]
    position = _POSITION.search(text)
    if position is None:
        raise CaptionError(f"{caption!r} does not say where its first group is: {', '.join(OPPOSITE)} of the second")
    # The first position in the caption is the first group's, before its noun or after it.
    return _POSITION_OF[position[1]]
