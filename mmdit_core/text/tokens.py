"""Positions of a prompt's words in the context that a model reads, so that a phrase is found there."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import Literal, Protocol


class PhraseError(ValueError):
    """A phrase, or an encoder's part of the context, cannot be found in a prompt."""


class PhraseNotFound(PhraseError):
    """A phrase is not in the prompt.

    Attributes: phrase; part, "all", "clip" or "t5"; words of the prompt, one text for each different one of the
    encoders; missing, the names of the encoders that are missing or dropped.
    """

    def __init__(self, phrase: str, part: str, words: tuple[str, ...], missing: tuple[str, ...]):
        self.phrase, self.part, self.words, self.missing = phrase, part, words, missing
        where = "the prompt" if part == "all" else f"the prompt's {part} part"
        super().__init__(
            f"{phrase!r} is not in {where}{_missing(missing)}. The prompt's words: {' | '.join(words) or 'none'}"
        )


class PartNotFound(PhraseError):
    """None of a prompt's encoders is of this part. Attributes: part; encoders, names of those present; missing."""

    def __init__(self, part: str, encoders: tuple[str, ...], missing: tuple[str, ...]):
        self.part, self.encoders, self.missing = part, encoders, missing
        names = ", ".join(encoders) or "nothing"
        super().__init__(f"the prompt has no {part} part{_missing(missing)}; its encoders are: {names}")


class PhraseBetweenImages(PhraseError):
    """A phrase is only between two images of a prompt, where positions are unknown. Attribute: phrase."""

    def __init__(self, phrase: str):
        self.phrase = phrase
        super().__init__(f"{phrase!r} is between two images of the prompt, where the positions of words are not known")


Missing = Literal["unknown", "changed", "unmapped"]  # unknown prompt; changed context; unknown layout of its encoder


class NoTokenMap(PhraseError):
    """A phrase or a part is requested of a context that has no token map. Attributes: kind; reason, in words."""

    def __init__(
        self,
        kind: Missing = "unknown",
        reason: str = "the context has no token map, which a phrase or an encoder's part is found with",
    ):
        self.kind, self.reason = kind, reason
        super().__init__(reason)


def _missing(names: tuple[str, ...]) -> str:
    return f" ({', '.join(names)}: missing or dropped)" if names else ""


@dataclass(frozen=True)
class Word:
    """One word of a prompt as an encoder splits it.

    Fields: text, its letters in lower case; positions, of its tokens in the context.
    """

    text: str
    positions: tuple[int, ...]


@dataclass(frozen=True)
class EncoderTokens:
    """One encoder's tokens in a context.

    Fields: name for people; is_clip; start and stop, the range of its positions; words, in the prompt's order; present,
    False if the encoder is missing or dropped, so that its positions hold zeros; is_other, True if it is neither a CLIP
    nor T5; unplaced, words between two images, whose positions are unknown.
    """

    name: str
    is_clip: bool
    start: int
    stop: int
    words: tuple[Word, ...]
    present: bool = True
    is_other: bool = False
    unplaced: tuple[str, ...] = ()

    def is_of(self, part: str) -> bool:
        """True if the encoder is of a part: "all", "clip" or "t5"."""
        return part == "all" or (not self.is_other and self.is_clip == (part == "clip"))


class Positions(Protocol):
    """What finds a phrase in a context: a TokenMap, or what builds one when it is first used."""

    def positions(self, phrases: Iterable[str] = (), part: str = "all") -> tuple[int, ...]:
        """As `TokenMap.positions`."""
        ...


@dataclass(frozen=True)
class TokenMap:
    """The tokens of one prompt by encoder.

    CLIP-L and CLIP-G have the same positions, because they are joined on the channels.
    """

    encoders: tuple[EncoderTokens, ...]

    def positions(self, phrases: Iterable[str] = (), part: str = "all") -> tuple[int, ...]:
        """Positions in the context of all occurrences of phrases, or of all tokens if no phrase is given.

        Args: phrases, whole words of the prompt; empty ones are skipped; part, which encoders: "all", "clip" or "t5".
        Returns: positions, rising.
        Raises: PhraseNotFound if none of these encoders has the phrase; PartNotFound if none is of the part;
            PhraseBetweenImages.
        """
        of_part = [e for e in self.encoders if e.is_of(part)]
        encoders = [e for e in of_part if e.present]
        phrases = [phrase for phrase in phrases if phrase.strip()]
        missing = _distinct(e.name for e in self.encoders if not e.present)
        if not of_part or not (phrases or encoders):
            raise PartNotFound(part, _distinct(e.name for e in self.encoders if e.present), missing)
        if not phrases:
            return tuple(sorted({position for e in encoders for position in range(e.start, e.stop)}))
        positions: set[int] = set()
        for phrase in phrases:
            found = [position for e in encoders for position in _find(phrase, e.words)]
            if not found and any(normalise(phrase) in normalise(text) for e in encoders for text in e.unplaced):
                raise PhraseBetweenImages(phrase)
            if not found:
                texts = {" ".join(word.text for word in e.words if word.text) for e in self.encoders if e.present}
                raise PhraseNotFound(phrase, part, tuple(sorted(texts)), missing)
            positions.update(found)
        return tuple(sorted(positions))


def joined(maps: Sequence[tuple[TokenMap, int]]) -> TokenMap:
    """The map of contexts joined along their length; no phrase is found across a joint.

    Args: maps, each with its context's length.
    """
    encoders: list[EncoderTokens] = []
    start = 0
    for each, length in maps:
        encoders += shifted(each, start).encoders
        start += length
    return TokenMap(tuple(encoders))


def shifted(tokens: TokenMap, by: int) -> TokenMap:
    """A map whose positions are moved."""
    return TokenMap(tuple(_shifted(encoder, by) for encoder in tokens.encoders))


def _shifted(encoder: EncoderTokens, by: int) -> EncoderTokens:
    words = tuple(Word(word.text, tuple(position + by for position in word.positions)) for word in encoder.words)
    return replace(encoder, start=encoder.start + by, stop=encoder.stop + by, words=words)


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def normalise(text: str) -> str:
    """Lower case, composed characters (NFKC), no spaces: the form in which words of all tokenizers compare equal."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text).lower())


def words_of(pieces: Sequence[tuple[str, bool, int]]) -> tuple[Word, ...]:
    """Join an encoder's tokens to words.

    Args: pieces, for each token of the prompt (no start, end or padding): its letters, True if it begins a word, and
        its position in the context.
    Returns: the words, in order.
    """
    words: list[Word] = []
    for letters, begins, position in pieces:
        word = Word("", ()) if begins or not words else words.pop()
        words.append(Word(word.text + normalise(letters), (*word.positions, position)))
    return tuple(words)


def _find(phrase: str, words: Sequence[Word]) -> list[int]:
    """Positions of every occurrence of a phrase, whole words only: 'red' is not in 'hundred'.

    Tokenizers split words differently ("blue," is one word or two, and so is "-haired"), so letters are compared, and a
    word may have punctuation around the phrase. In scripts without spaces between words any letters may match.
    """
    target = normalise(phrase)
    if not target:
        return []
    if all(map(_is_unspaced, target)):
        return _find_letters(target, words)
    found: list[int] = []
    for start, first in enumerate(words):
        if not first.text or (_is_mark(first.text) and not _is_mark(target[0])):
            continue
        letters = ""
        positions: list[int] = []
        for word in words[start:]:
            letters += word.text
            positions.extend(word.positions)
            bare = letters if _is_mark(target[0]) else "".join(dropwhile(_is_mark, letters))
            if len(bare) >= len(target):
                if bare == target or (bare.startswith(target) and _is_mark(bare[len(target) :])):
                    found.extend(positions)
                break
    return found


def _find_letters(target: str, words: Sequence[Word]) -> list[int]:
    """Positions of the words that any letter of an occurrence of `target` belongs to."""
    text = "".join(word.text for word in words)
    owners = [word for word in words for _ in word.text]
    starts = [start for start in range(len(text)) if text.startswith(target, start)]
    found = (word for start in starts for word in owners[start : start + len(target)])
    return [position for word in found for position in word.positions]


def _is_mark(letters: str) -> bool:
    """True if all are punctuation or symbols."""
    return all(unicodedata.category(letter)[0] in "PS" for letter in letters)


def _is_unspaced(letter: str) -> bool:
    """True for a letter of the East Asian scripts, which have no spaces between words."""
    return ord(letter) > 0x2E7F and not _is_mark(letter)


def _byte_letters() -> dict[str, int]:
    """Letter -> byte in byte-level vocabularies: a printable byte is its own letter, the others follow 255.

    Source: Radford et al. 2019 (GPT-2); CLIP and Qwen use it.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
BYTE_LETTERS = tuple(sorted(_BYTE_OF, key=lambda letter: _BYTE_OF[letter]))  # the letter of each byte
WORD_START = ("\u2581", "\u0120")  # in T5's and Qwen's entries: a space precedes the token
WORD_END = "</w>"  # in CLIP's entries: a space follows the token
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # one byte of a letter that is not in the vocabulary (Gemma, Llama 2)


def words_of_entries(entries: Sequence[tuple[str, int]], byte_level: bool) -> tuple[Word, ...]:
    """Join entries of a tokenizer's vocabulary to words; a run of punctuation or symbols is a word of its own.

    Args: entries, for each token of the prompt its entry and its position in the context; byte_level, True if the
        letters of an entry are bytes (CLIP, Qwen), False if they are text (T5).
    Returns: the words, in order.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces: list[tuple[str, bool, int]] = []
    ended = True
    for entry, position in entries:
        letters = entry.removesuffix(WORD_END).lstrip("".join(WORD_START))
        inside = bool(decoder.getstate()[0])  # the last token ends within the bytes of a letter
        if byte_level and all(letter in _BYTE_OF for letter in letters):
            letters = decoder.decode(bytes(_BYTE_OF[letter] for letter in letters))
        elif not byte_level and (byte := _BYTE.fullmatch(letters)):
            letters = decoder.decode(bytes.fromhex(byte[1]))
        separate = bool(letters) and (_is_mark(letters[0]) or _is_unspaced(letters[0]))
        begins = ended or separate or entry.startswith(WORD_START)
        pieces.append((letters, begins and not inside, position))
        ended = entry.endswith(WORD_END) or (separate and (_is_mark(letters[-1]) or _is_unspaced(letters[-1])))
    return words_of(pieces)
