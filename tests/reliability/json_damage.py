"""Damage to JSON: odd values in place of others, and a writer that also writes what no value of Python can say."""

from __future__ import annotations

import json
from random import Random
from typing import Any


class Raw(str):
    """JSON, or what only looks like it, written as it is."""


class Pairs(list):
    """An object as (name, value) pairs, so that a name can come twice."""


DEEP, MANY = 5000, 20_000
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 64, 0.5, 2**31, 2**53 + 1, 2**63, -(2**63), 10**400,
    *map(Raw, ("1e999", "-1e999", "NaN", "Infinity", "-0.0", "1E400", "9" * 5000, "0x10", "1.", "+1", "")),
    "", " ", "0", "x", "../outside.safetensors", "/etc/hostname", "C:\\x", ".", "..", "a\u0000b", "\u202e", "é" * 300,
    "a" * 100_000, *map(Raw, ('"\\ud800"', '"\\udfff\\ud800"', '"\\x"', '"open', "'x'")),
    [], {}, [[]], [None], [True, 1], [0], [-1], [0.5], [2**63, 2**63], [1] * 40, {"a": {}}, {"": ""},
    Raw("[" * DEEP + "]" * DEEP), Raw('{"a":' * DEEP + "1" + "}" * DEEP), Raw("[" * DEEP),
    Raw("[[]" + ",[]" * MANY + "]"),
)  # fmt: skip


def as_text(value: Any) -> str:
    """The JSON of a value that may hold Raw and Pairs."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{as_text(name)}:{as_text(each)}" for name, each in value) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_text, value)) + "]"
    return json.dumps(value)


def as_bytes(value: Any) -> bytes:
    """The JSON in UTF-8; half a surrogate pair becomes bytes that are no UTF-8."""
    return as_text(value).encode("utf-8", errors="surrogatepass")


def damaged(value: Any, random: Random) -> Any:
    """A value with one change somewhere inside: an odd value, a name twice, missing, added or renamed."""
    if isinstance(value, dict | list | Pairs) and value and random.random() < 0.8:
        return _inside(value, random)
    return random.choice(ODD)


def _inside(value: Any, random: Random) -> Any:
    if isinstance(value, list) and not isinstance(value, Pairs):
        items = list(value)
        index = random.randrange(len(items))
        items[index] = damaged(items[index], random)
        return items
    pairs = Pairs(value.items() if isinstance(value, dict) else value)
    index = random.randrange(len(pairs))
    name, inner = pairs[index]
    how = random.choice(("inside", "inside", "inside", "inside", "missing", "twice", "renamed", "added"))
    if how == "inside":
        pairs[index] = (name, damaged(inner, random))
    elif how == "missing":
        del pairs[index]
    elif how == "twice":
        pairs.append((name, random.choice((inner, random.choice(ODD)))))
    elif how == "renamed":
        pairs[index] = (random.choice(("", "x", "\u202e", "n" * 5000, Raw('"\\ud800"'))), inner)
    else:
        pairs.append((f"added{random.randrange(9)}", random.choice(ODD)))
    return pairs


def damaged_bytes(content: bytes, random: Random) -> bytes:
    """Bytes that were cut, flipped, put in, or replaced by what a failed download leaves."""
    how = random.choice(("cut", "cut", "flipped", "flipped", "inserted", "replaced"))
    place = random.randrange(len(content) + 1)
    if how == "cut":
        return content[:place]
    if how == "flipped":
        flipped = bytearray(content)
        for _ in range(random.randint(1, 3)):
            flipped[random.randrange(len(flipped))] ^= random.randint(1, 255)
        return bytes(flipped)
    if how == "inserted":
        return content[:place] + random.randbytes(random.randint(1, 20)) + content[place:]
    return random.choice(REPLACEMENTS)


REPLACEMENTS = (
    b"",
    b"\x00" * 4096,
    b"<!DOCTYPE html><html>log in</html>",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    b"PK\x03\x04" + b"x" * 100,
    b"\x80\x02}q\x00.",
    b"\xff\xfe" + "text".encode("utf-16-le"),
    b"\xef\xbb\xbf{}",
    b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 16,
    b"[" * 100_000,
)
