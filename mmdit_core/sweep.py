"""Values of a sweep's axis as text: "1, 1.5", "1-3 (5)", names, windows "0-0.5 | 0.5-1", block lists "0-3 | 4-7"."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .control.grammar import BlockTextError, parse_block_strengths, parse_blocks
from .flow.window import Window, WindowError

MOST_VALUES = 400
LONGEST = 60  # characters of a number or a range
_NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,2})?"
_ONE = re.compile(_NUMBER)
_PAIR = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*([0-9]+)\s*\))?")
NUMBERS = "Write numbers such as 1, 1.5, or a range: 1-3 (5) is 5 even values from 1 to 3"
WINDOWS = "Write start-end, each from 0 to 1, such as 0-0.5 | 0.5-1"
BLOCKS = "Write block lists with | between them, such as 0-3 | 4-7; none is no block"
_INHERITED = -1.0  # strength of a block in a list that gives it none


class ValuesError(ValueError):
    """A part of an axis' values cannot be used. Attributes: found, what is wrong with it; right, what to write."""

    def __init__(self, found: str, right: str):
        self.found, self.right = found, right
        super().__init__(f"{found}. {right}")


@dataclass(frozen=True)
class BlockList:
    """A block list of an axis.

    Fields: text, as written; groups, (blocks, strength) for each strength in it, None for blocks without one.
    """

    text: str
    groups: tuple[tuple[tuple[int, ...], float | None], ...]


def parse_numbers(
    text: str, low: float, high: float, *, whole: bool = False, most: int = MOST_VALUES
) -> tuple[float | int, ...]:
    """The numbers that a text lists, in its order.

    A range is computed exactly and rounded once: 0.1-0.3 (3) gives the numbers that 0.1, 0.2, 0.3 gives.

    Args: text, parts between commas, semicolons or line ends: a number, or a range "1-3 (5)"; low and high, the limits
        of each number; whole, True for whole numbers, returned as int; most, how many there may be.
    Raises: ValuesError.
    """
    found: list[float | int] = []
    for part in _parts(text, r"[,;\n]", NUMBERS):
        exact = _numbers(part, most)
        for value in exact:
            shown = part if len(exact) == 1 else f"{float(value):g} (in {part!r})"
            if not low <= value <= high:
                raise ValuesError(f"{shown} is out of range", f"Write numbers from {low:g} to {high:g}")
            if whole and value.denominator != 1:
                raise ValuesError(f"{shown} is not whole", "Write whole numbers, or a range that gives whole numbers")
            found.append(int(value) if whole else float(value))
        if len(found) > most:
            raise ValuesError(f"it lists more than {most} values", f"Write at most {most}")
    return tuple(found)


def _numbers(part: str, most: int) -> list[Fraction]:
    """The numbers of one part, exactly."""
    if len(part) > LONGEST:
        raise ValuesError(f"{part[:LONGEST]!r}... is not a number", NUMBERS)
    if _ONE.fullmatch(part):
        return [Fraction(part)]
    span = _RANGE.fullmatch(part)
    if span is None:
        raise ValuesError(f"{part!r} is not a number", NUMBERS)
    start, end, count = span.groups()
    if count is None:
        raise ValuesError(f"{part!r} does not say how many values", f"Write the number of values: {part} (5)")
    if int(count) < 2:
        raise ValuesError(f"{part!r} has {int(count)} values", "Write 2 values or more, or a number alone")
    if int(count) > most:
        raise ValuesError(f"{part!r} has {int(count):,} values", f"Write at most {most}")
    first, last, steps = Fraction(start), Fraction(end), int(count) - 1
    return [first + (last - first) * index / steps for index in range(int(count))]


def parse_names(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """The names that a text lists, in its order, between commas, semicolons or line ends. Raises: ValuesError."""
    right = f"Write names of {', '.join(known)}, with commas between them"
    names = _parts(text, r"[,;\n]", right)
    for name in names:
        if name not in known:
            raise ValuesError(f"{name[:LONGEST]!r} is unknown", right)
    return names


def parse_windows(text: str) -> tuple[tuple[float, float], ...]:
    """The windows that a text lists, as (start, end), between bars, commas, semicolons or line ends.

    Raises: ValuesError, also for a window that ends before it starts.
    """
    found = []
    for part in _parts(text, r"[|,;\n]", WINDOWS, gaps=False):
        pair = _PAIR.fullmatch(part) if len(part) <= LONGEST else None
        if pair is None:
            raise ValuesError(f"{part[:LONGEST]!r} is not a window", WINDOWS)
        start, end = float(pair[1]), float(pair[2])
        try:
            Window(start, end)
        except WindowError as error:
            raise ValuesError(f"the {error.field} of {part!r} is not from 0 to 1", WINDOWS) from error
        if start > end:
            raise ValuesError(f"{part!r} runs backwards", "Write the smaller number first")
        found.append((start, end))
    return tuple(found)


def parse_block_lists(text: str, double: int, single: int = 0, *, strengths: bool = False) -> tuple[BlockList, ...]:
    """The block lists that a text names, between bars, each in the grammar of the block nodes.

    Args: double and single, how many blocks of each kind the model has; strengths, a block may have its own: "3:1.5".
    Raises: ValuesError.
    """
    found = []
    for part in _parts(text, r"\|", BLOCKS, gaps=False):
        try:
            if strengths:
                groups = _groups(parse_block_strengths(part, double, single, default=_INHERITED))
            else:
                groups = ((parse_blocks(part, double, single), None),)
        except BlockTextError as error:
            raise ValuesError(error.found, error.right) from error
        found.append(BlockList(" ".join(part.split()), groups))
    return tuple(found)


def _groups(strengths: dict[int, float]) -> tuple[tuple[tuple[int, ...], float | None], ...]:
    """Block -> strength as one group for each strength."""
    blocks: defaultdict[float | None, list[int]] = defaultdict(list)
    for block, strength in strengths.items():
        blocks[None if strength == _INHERITED else strength].append(block)
    return tuple((tuple(own), strength) for strength, own in blocks.items()) or (((), None),)


def _parts(text: str, between: str, right: str, *, gaps: bool = True) -> tuple[str, ...]:
    """The parts of a text. Args: gaps, leave out empty parts; else they are an error. Raises: ValuesError."""
    parts = [part.strip() for part in re.split(between, text)]
    if not any(parts):
        raise ValuesError("it holds no value", right)
    if not gaps and not all(parts):
        raise ValuesError(f"part {parts.index('') + 1} of {len(parts)} is empty", right)
    return tuple(part for part in parts if part)
