"""Where each word of a prompt stands in the text that a model reads, so that a phrase can be found there."""

from __future__ import annotations

import codecs
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

        Raises: PhraseError for a phrase that none of these encoders holds, with the prompt's words; for a part that the
            prompt does not have.
        """
        wanted = PARTS[part]
        encoders = [e for e in self.encoders if e.present and (wanted is None or e.is_clip == wanted)]
        phrases = [phrase for phrase in phrases if phrase.strip()]
        if not phrases:
            if not encoders:
                names = ", ".join(e.name for e in self.encoders if e.present) or "nothing"
                raise PhraseError(f"the prompt has no {part} part{self._dropped()}; it was read by {names}")
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
        lists = {" ".join(word.text for word in e.words if word.text) for e in self.encoders if e.present}
        words = " | ".join(sorted(lists)) or "none"
        return f"{phrase!r} is not in {where}{self._dropped()}. The prompt's words: {words}"

    def _dropped(self) -> str:
        names = ", ".join(e.name for e in self.encoders if not e.present)
        return f" ({names}: missing or dropped)" if names else ""


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

    Tokenizers disagree on where a word begins and ends ("blue," is one word or two, "-haired" too), so that letters are
    compared, and a word may have marks around the phrase. Where words are not parted by spaces, any letters may match.
    """
    sought = normalise(phrase)
    if not sought:
        return []
    if all(map(_is_unspaced, sought)):
        return _covering(sought, words)
    found: list[int] = []
    for start, first in enumerate(words):
        if not first.text or (_is_mark(first.text) and not _is_mark(sought[0])):
            continue
        letters = ""
        places: list[int] = []
        for word in words[start:]:
            letters += word.text
            places.extend(word.places)
            bare = letters if _is_mark(sought[0]) else _without_leading_marks(letters)
            if len(bare) >= len(sought):
                if bare == sought or (bare.startswith(sought) and _is_mark(bare[len(sought) :])):
                    found.extend(places)
                break
    return found


def _covering(sought: str, words: Sequence[Word]) -> list[int]:
    """Places of the words that hold any of the letters sought, which stand side by side."""
    text = "".join(word.text for word in words)
    owners = [word for word in words for _ in word.text]
    starts = [at for at in range(len(text)) if text.startswith(sought, at)]
    return [place for at in starts for word in owners[at : at + len(sought)] for place in word.places]


def _is_mark(letters: str) -> bool:
    """Whether there is nothing but punctuation and symbols."""
    return all(unicodedata.category(letter)[0] in "PS" for letter in letters)


def _is_unspaced(letter: str) -> bool:
    """Whether a letter is of the East Asian scripts, whose words no space parts."""
    return ord(letter) > 0x2E7F and not _is_mark(letter)


def _without_leading_marks(letters: str) -> str:
    return letters[next((at for at, letter in enumerate(letters) if not _is_mark(letter)), len(letters)) :]


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


def words_of_entries(entries: Sequence[tuple[str, int]], byte_level: bool) -> tuple[Word, ...]:
    """Join entries of a tokenizer's vocabulary to words; marks (punctuation, symbols) begin one of their own.

    Args: entries, for each token of the prompt its entry and its place in the context; byte_level, whether an entry's
        letters stand for bytes (CLIP, Qwen) and not for themselves (T5).
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces: list[tuple[str, bool, int]] = []
    ended = True
    for entry, place in entries:
        letters = entry.removesuffix(WORD_END).lstrip("".join(WORD_START))
        inside = bool(decoder.getstate()[0])  # the token before holds the first bytes of a letter that ends here
        if byte_level and all(letter in _BYTE_OF for letter in letters):
            letters = decoder.decode(bytes(_BYTE_OF[letter] for letter in letters))
        parted = bool(letters) and (_is_mark(letters[0]) or _is_unspaced(letters[0]))
        begins = ended or parted or entry.startswith(WORD_START)
        pieces.append((letters, begins and not inside, place))
        ended = entry.endswith(WORD_END) or (parted and (_is_mark(letters[-1]) or _is_unspaced(letters[-1])))
    return words_of(pieces)
