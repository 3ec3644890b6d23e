"""Boosts as text, one a line: "on | 3-5 | 1.5 | red hat"."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..typed import plain_signs

_LINE_END = re.compile(r"\r\n?|\n")
_BAR = re.compile("[|\uff5c]")  # the ASCII one and the full-width one
_NUMBER = re.compile(r"-?([0-9]+\.?[0-9]*|\.[0-9]+)")
_SWITCH = {"on": True, "off": False}
MOST_ROWS = 100  # each is a control of its own in every model call
_FORM = "Write on or off, blocks, strength and phrase with | between them, as in on | 3-5 | 1.5 | red hat"


class RowTextError(ValueError):
    """A row cannot be read. Attributes: found, with the number of the row; right, what to write."""

    def __init__(self, number: int, found: str, right: str = _FORM):
        self.found, self.right = f"row {number}: {found}", right
        super().__init__(f"{self.found}. {right}")


@dataclass(frozen=True)
class BoostRow:
    """A boost as it was written.

    Fields: number, from 1, without blank lines; on; blocks, text of a block list; strength, of any size; phrase, "" for
    the whole text.
    """

    number: int
    on: bool
    blocks: str
    strength: float
    phrase: str = ""


def parse_rows(text: str) -> tuple[BoostRow, ...]:
    """The rows that a text holds, one a line: `on | blocks | strength | phrase`, or `off | ...`.

    Args: text; blank lines are ignored, the last bar and the phrase may be missing, and the phrase may contain bars.
        The signs of other keyboards are read, as `plain_signs` does, and stay as they are in the phrase.
    Raises: RowTextError for a row of another form, and for more than MOST_ROWS. The blocks and the size of the strength
        are not checked.
    """
    lines = [line for line in _LINE_END.split(text) if line.strip()]
    if len(lines) > MOST_ROWS:
        raise RowTextError(MOST_ROWS + 1, f"there are {len(lines)} rows", f"Write at most {MOST_ROWS}")
    return tuple(_row(number, line) for number, line in enumerate(lines, start=1))


def _row(number: int, line: str) -> BoostRow:
    parts = [part.strip() for part in _BAR.split(line, maxsplit=3)]
    if len(parts) < 3:
        raise RowTextError(number, f"{line.strip()[:60]!r} has {len(parts)} of its 4 parts")
    switch, blocks, strength = (plain_signs(part) for part in parts[:3])
    on = _SWITCH.get(switch.strip().lower())
    if on is None:
        raise RowTextError(number, f"{parts[0][:60]!r} is neither on nor off")
    if not _NUMBER.fullmatch(strength.strip()):
        raise RowTextError(number, f"the strength {parts[2][:60]!r} is not a number", "Write a number, as in 1.5")
    return BoostRow(number, on, blocks.strip(), float(strength), *parts[3:])
