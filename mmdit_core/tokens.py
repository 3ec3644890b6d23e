"""Where each word of a prompt stands in the text that a model reads, so that a phrase can be found there."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

PARTS = {"all": None, "clip": True, "t5": False}  # part -> whether its encoders are CLIPs


class PhraseError(ValueError):
    """A phrase that is not in the prompt."""


@dataclass(frozen=True)
class Word:
    """One word of a prompt as an encoder cut it: its letters, lower case, and its tokens' places in the context."""

    text: str
    places: tuple[int, ...]


@dataclass(frozen=True)
class EncoderTokens:
    """One encoder's share of a context.

    Fields: name for people; is_clip; first and last, its places are first <= place < last; words, in the prompt's
    order; present, False where the encoder is missing or dropped, so that its places hold nothing.
    """

    name: str
    is_clip: bool
    first: int
    last: int
    words: tuple[Word, ...]
    present: bool = True


@dataclass(frozen=True)
class TokenMap:
    """The tokens of one prompt, encoder by encoder. CLIP-L and CLIP-G share places: they lie side by side."""

    encoders: tuple[EncoderTokens, ...]

    def positions(self, phrases: Iterable[str] = (), part: str = "all") -> tuple[int, ...]:
        """Places in the context of some phrases, in the encoders of a part; of all tokens where no phrase is given.

        Raises: PhraseError for a phrase that none of these encoders holds, with the prompt's words.
        """
        wanted = PARTS[part]
        encoders = [e for e in self.encoders if e.present and (wanted is None or e.is_clip == wanted)]
        phrases = [phrase for phrase in phrases if phrase.strip()]
        if not phrases:
            return tuple(sorted({place for e in encoders for place in range(e.first, e.last)}))
        places: set[int] = set()
        for phrase in phrases:
            found = [place for e in encoders for place in _find(phrase, e.words)]
            if not found:
                raise PhraseError(self._not_found(phrase, part))
            places.update(found)
        return tuple(sorted(places))

    def _not_found(self, phrase: str, part: str) -> str:
        where = "the prompt" if part == "all" else f"the prompt's {part} part"
        lists = {" ".join(word.text for word in e.words) for e in self.encoders if e.present}
        dropped = [e.name for e in self.encoders if not e.present]
        note = f" ({', '.join(dropped)}: missing or dropped)" if dropped else ""
        return f"{phrase!r} is not in {where}{note}. The prompt's words: {' | '.join(sorted(lists)) or 'none'}"


def normalise(text: str) -> str:
    """Lower case, composed characters, no spaces: how tokenizers of different kinds agree on a word."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text).lower())


def words_of(pieces: Sequence[tuple[str, bool, int]]) -> tuple[Word, ...]:
    """Join an encoder's tokens to words.

    Args: pieces, for each token of the prompt (no start, end or padding): its letters, whether a word begins with it,
        and its place in the context.
    """
    words: list[tuple[str, list[int]]] = []
    for letters, begins, place in pieces:
        if begins or not words:
            words.append(("", []))
        text, places = words[-1]
        words[-1] = (text + normalise(letters), [*places, place])
    return tuple(Word(text, tuple(places)) for text, places in words)


def _find(phrase: str, words: Sequence[Word]) -> list[int]:
    """Places of every occurrence of a phrase, whole words only: 'red' is not in 'hundred'.

    Tokenizers disagree on where a word ends ("blue," is one word to T5 and two to CLIP), so that letters are compared,
    and a phrase may end before a word's punctuation.
    """
    sought = normalise(phrase)
    found: list[int] = []
    for start in range(len(words)):
        letters = ""
        places: list[int] = []
        for word in words[start:]:
            letters += word.text
            places.extend(word.places)
            if len(letters) >= len(sought):
                break
        if letters == sought or (letters.startswith(sought) and not letters[len(sought) :].strip(_PUNCTUATION)):
            found.extend(places)
    return found


_PUNCTUATION = ".,;:!?\"'()[]{}…"


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level tokenizers write for bytes: printable ones stand for themselves, others follow 255.

    Source: Radford et al. 2019 (GPT-2); CLIP's and Qwen's vocabularies are written so.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_letters()
WORD_START = ("\u2581", "\u0120")  # T5's and Qwen's mark of a space before a token
WORD_END = "</w>"  # CLIP's mark of a space after one


def split_piece(piece: str) -> tuple[str, bool, bool]:
    """One entry of a tokenizer's vocabulary.

    Returns: its letters; whether it begins a word; whether it ends one. Characters of scripts that are written without
        spaces are words by themselves.
    """
    ends = piece.endswith(WORD_END)
    begins = piece.startswith(WORD_START)
    sentencepiece = piece.startswith(WORD_START[0]) or not all(letter in _BYTE_OF for letter in piece)
    letters = piece.removesuffix(WORD_END).lstrip("".join(WORD_START))
    if not sentencepiece:
        letters = bytes(_BYTE_OF[letter] for letter in letters).decode("utf-8", errors="replace")
    alone = bool(letters) and all(ord(letter) > 0x2E7F for letter in letters)
    return letters, begins or alone, ends
