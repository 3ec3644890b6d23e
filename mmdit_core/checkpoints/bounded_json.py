"""JSON of files that may hold anything, read in bounded memory; what cannot be read is a ValueError.

Python's parser needs up to 30 times the size of a text for its values, as for a list of empty lists. Long texts are
read member by member instead, and the others are refused by their size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

MOST_TEXT = 1_000_000  # characters or bytes of a text that is parsed as a whole
MOST_MEMBERS = 100_000  # of an object that is read member by member
MOST_FLAT = 10_000  # characters of a flat object

_SPACE = re.compile(r"[ \t\n\r]*")
_FLAT = re.compile(rf"\{{[^{{}}]{{0,{MOST_FLAT}}}\}}")
_DECODER = json.JSONDecoder()


def parse(text: str | bytes | bytearray, most: int = MOST_TEXT) -> Any:
    """The value of a text. Raises: ValueError if it is no JSON, nested too deeply, or longer than `most`."""
    if len(text) > most:
        raise ValueError(f"it is {len(text)} long, and at most {most} is read")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Scanner:
    """Reads one text from its beginning. Each method takes what it names and raises ValueError for anything else."""

    def __init__(self, text: str):
        self._text, self._at = text, 0

    def members(self) -> Iterator[str]:
        """The names of an object's members. The value of each must be taken before the next name."""
        self._expect("{")
        names: set[str] = set()
        more = not self._take("}")
        while more:
            name = self.string()
            if name in names:
                raise ValueError("a name appears twice")
            names.add(name)
            if len(names) > MOST_MEMBERS:
                raise ValueError(f"it has more than {MOST_MEMBERS} members")
            self._expect(":")
            yield name
            more = self._take(",")
            if not more:
                self._expect("}")

    def string(self) -> str:
        """A text. Half a surrogate pair is refused: no other reader takes it, and it cannot be shown."""
        if not self._follows('"'):
            raise ValueError(f"there is no text at character {self._at}")
        value, self._at = _DECODER.raw_decode(self._text, self._at)
        value.encode()
        return value

    def flat_object(self) -> dict[str, Any]:
        """An object that holds no other object."""
        self._follows("{")
        found = _FLAT.match(self._text, self._at)
        if found is None:
            raise ValueError(f"there is no flat object of at most {MOST_FLAT} characters at character {self._at}")
        self._at = found.end()
        try:
            return json.loads(found[0], object_pairs_hook=_without_duplicates)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None

    def end(self) -> None:
        """The end of the text."""
        if not self._follows(""):
            raise ValueError(f"something follows at character {self._at}")

    def _follows(self, sign: str) -> bool:
        """Whether a sign, or for "" nothing, comes next after spaces."""
        space = _SPACE.match(self._text, self._at)
        assert space is not None  # it may be empty
        self._at = space.end()
        return self._text[self._at : self._at + 1] == sign

    def _take(self, sign: str) -> bool:
        found = self._follows(sign)
        self._at += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise ValueError(f"there is no {sign} at character {self._at}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found
