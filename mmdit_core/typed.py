"""Typed text in the signs of ASCII: what keyboards of other languages write for digits, commas, dashes and spaces."""

from __future__ import annotations

import re
import unicodedata

_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u301c\u30fc\uff5e~"  # hyphens, dashes, minus, waves, long vowel
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_SIGNS: dict[int, int | str] = {**_FULL_WIDTH, **dict.fromkeys(map(ord, _DASHES), "-"), ord("\u3001"): ","}
_OTHERS = re.compile(r"[^\x21-\x7e\n ]")


def plain_signs(text: str) -> str:
    """A text in ASCII, as far as its signs have an equal there: "0－3，９" becomes "0-3,9".

    These are full-width signs, dashes, the ideographic comma, digits of any script and white space but line ends.
    """
    text = text.replace("\u2014\u2014", "-")  # Chinese keyboards write a dash as two
    return _OTHERS.sub(_plain, text.translate(_SIGNS))


def _plain(sign: re.Match[str]) -> str:
    if sign[0].isspace():
        return " "
    return str(unicodedata.decimal(sign[0], sign[0]))
