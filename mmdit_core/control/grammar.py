"""Block lists as text: "0-5, 9, 12-", "even", "first 25%", "!3", "d3, s7", and "3:1.5" with a strength."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..typed import plain_signs

MOST_DIGITS = 18


class BlockTextError(ValueError):
    """A part of a block list cannot be used. Attributes: found, what is wrong with which part; right, what to write."""

    def __init__(self, found: str, right: str):
        self.found, self.right = found, right
        super().__init__(f"{found}. {right}")


class BlockOutOfRange(BlockTextError):
    """A block that the model does not have. Attributes: block and count, of its kind; kind, "d", "s", or "" for all."""

    def __init__(self, block: int, count: int, kind: str = "", *, inside: str = "", right: str = ""):
        self.block, self.count, self.kind = block, count, kind
        super().__init__(f"block {kind}{block} does not exist{inside}", right or f"There are {count}")


@dataclass(frozen=True)
class _Blocks:
    """The blocks of a model: double (joint) ones first, then single ones, numbered through."""

    double: int
    single: int

    @property
    def total(self) -> int:
        return self.double + self.single

    def __str__(self) -> str:
        text = f"This model has blocks 0 to {self.total - 1}"
        if not self.single:
            return text
        return (
            f"{text}: double d0 to d{self.double - 1} (0 to {self.double - 1}) "
            f"and single s0 to s{self.single - 1} ({self.double} to {self.total - 1})"
        )


_WORDS: dict[str, Callable[[_Blocks], range]] = {
    "all": lambda have: range(have.total),
    "none": lambda have: range(0),
    "even": lambda have: range(0, have.total, 2),
    "odd": lambda have: range(1, have.total, 2),
    "first": lambda have: range(min(1, have.total)),
    "last": lambda have: range(have.total - 1, have.total),
    "early": lambda have: range(round(have.total / 3)),
    "middle": lambda have: range(round(have.total / 3), round(2 * have.total / 3)),
    "late": lambda have: range(round(2 * have.total / 3), have.total),
    "double": lambda have: range(have.double),
    "single": lambda have: range(have.double, have.total),
}
_FRACTIONS: dict[str, Callable[[int, int], range]] = {
    "first": lambda total, n: range(n),
    "last": lambda total, n: range(total - n, total),
    "middle": lambda total, n: range((total - n) // 2, (total - n) // 2 + n),
}
_FRACTION = re.compile(r"(first|last|middle)\s*(\d+(?:\.\d+)?)\s*%")
_SPAN = re.compile(r"([ds]?)(\d+)(?:\s*(-)\s*(?:([ds]?)(\d+))?)?")
_PART = re.compile(r"[^,;\n]+")
_BEFORE_EXCEPTION = re.compile(r"(?<=\d) +(?=!)")
_BETWEEN_NUMBERS = re.compile(r"(?<=\d) +(?=[dsDS]?\d)")
_GRAMMAR = (
    "Write numbers and ranges (0-5, 9, 12-), all, even, odd, first, last, early, middle, late, first 25%, "
    "!3 for all but 3, d3 and s7 for FLUX's double and single blocks"
)


def parse_blocks(text: str, double: int, single: int = 0) -> tuple[int, ...]:
    """The blocks that a text names.

    Args: text, parts between commas, semicolons or line ends: "0-5, 9, 12-", "last", "first 25%", "all", "even",
        "!3" (all but 3), "d3" and "s7"; spaces between numbers and the signs of other keyboards, as `plain` reads
        them; double and single, how many blocks of each kind the model has.
    Returns: global numbers, sorted, each once; () for an empty text.
    Raises: BlockTextError with the part and the model's blocks; BlockOutOfRange. No part is ignored.
    """
    return tuple(_parse(text, _Blocks(double, single)))


def parse_block_strengths(text: str, double: int, single: int = 0, default: float = 1.0) -> dict[int, float]:
    """Like `parse_blocks`, with a strength >= 0 for each block: "3:1.5, 7-9:2". The last one written counts.

    Args: default, the strength of a block without one. Returns: block -> strength, sorted by block.
    """
    return _parse(text, _Blocks(double, single), default, strengths=True)


def plain(text: str) -> str:
    """A block list in the signs of the grammar: "4、5 0–3" becomes "4,5, 0-3".

    A space between two numbers becomes a comma; not after an exception, as "!3 4" may mean two things.
    """
    text = _BEFORE_EXCEPTION.sub(", ", plain_signs(text))
    return _PART.sub(lambda part: part[0] if "!" in part[0] else _BETWEEN_NUMBERS.sub(", ", part[0]), text)


def _parse(text: str, have: _Blocks, default: float = 1.0, *, strengths: bool = False) -> dict[int, float]:
    """Block -> strength, sorted by block."""
    parts = [part for each in re.split(r"[,;\n]", plain(text)) if (part := each.strip().lower())]
    chosen: dict[int, float] = {}
    if parts and all(part.startswith("!") for part in parts):
        chosen = dict.fromkeys(range(have.total), default)
    for part in parts:
        if part.startswith("!"):
            for block in _range(part[1:].strip(), part, have):
                chosen.pop(block, None)
            continue
        body, colon, number = part.partition(":")
        if colon and not strengths:
            raise BlockTextError(f"{part!r} has a strength", "Write the block alone")
        strength = _strength(number, part) if colon else default
        chosen.update(dict.fromkeys(_range(body.strip(), part, have), strength))
    return dict(sorted(chosen.items()))


def _strength(number: str, part: str) -> float:
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not 0 <= strength < math.inf:
        raise BlockTextError(f"{part!r} has no strength of at least 0", "Write a number after the colon, as in 3:1.5")
    return strength


def _range(body: str, part: str, have: _Blocks) -> range:
    """The blocks of one part, without its sign and strength."""
    if body in _WORDS:
        return _WORDS[body](have)
    if fraction := _FRACTION.fullmatch(body):
        percent = float(fraction[2])
        if percent > 100:
            raise BlockTextError(f"{part!r} is more than all blocks", "Write at most 100%")
        return _FRACTIONS[fraction[1]](have.total, round(have.total * percent / 100))
    span = _SPAN.fullmatch(body)
    if span is None:
        raise BlockTextError(f"{part!r} cannot be read as blocks", f"{have}. {_GRAMMAR}")
    kind, start, dash, end_kind, end = span.groups()
    first = _number(kind, start, part, have)
    if not dash:
        return range(first, first + 1)
    if end is None:
        return range(first, have.double if kind == "d" else have.total)
    last = _number(end_kind or kind, end, part, have)
    if last < first:
        raise BlockTextError(f"{part!r} runs backwards", "Write the smaller block first")
    return range(first, last + 1)


def _number(kind: str, digits: str, part: str, have: _Blocks) -> int:
    """A block's global number."""
    count = {"d": have.double, "s": have.single, "": have.total}[kind]
    if len(digits) > MOST_DIGITS:  # int() takes no more than some thousands
        raise BlockTextError(f"{digits[:MOST_DIGITS]}... is no block", str(have))
    if int(digits) >= count:
        inside = "" if part == kind + digits else f" (in {part!r})"
        raise BlockOutOfRange(int(digits), count, kind, inside=inside, right=str(have))
    return int(digits) + (have.double if kind == "s" else 0)
