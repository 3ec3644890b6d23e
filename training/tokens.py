"""Captions to token numbers, fast: every word goes through the host's real tokenizers once and is remembered.

CLIP's and T5's tokenizers never join pieces across a space, so a caption's tokens are its words' tokens in order
(a test compares whole captions). Training embeds only tokens that occurred, in a compact table; the shipped file has
the full tables, where every other token shares one "unknown" row.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from torch import Tensor

LENGTH = 77
CLIP_START, CLIP_END, CLIP_PAD_G = 49406, 49407, 0
T5_END, T5_PAD = 1, 0
CLIP_VOCABULARY, T5_VOCABULARY = 49408, 32128
UNKNOWN_WORD = "\0"  # stands for words outside the world; becomes one to three unknown tokens


class Tokenizer:
    """Token numbers of captions for both kinds of encoder.

    Args: folder = the host's `comfy` folder, which holds `sd1_tokenizer` and `text_encoders/t5_tokenizer`.
    """

    def __init__(self, folder: Path):
        from transformers import CLIPTokenizer, T5TokenizerFast

        self._clip = CLIPTokenizer.from_pretrained(folder / "sd1_tokenizer")
        self._t5 = T5TokenizerFast.from_pretrained(folder / "text_encoders" / "t5_tokenizer")
        self._words: dict[str, tuple[list[int], list[int]]] = {}

    def word(self, word: str) -> tuple[list[int], list[int]]:
        """CLIP's and T5's tokens of one word (anything between spaces)."""
        if word not in self._words:
            clip = self._clip(word)["input_ids"][1:-1]
            t5 = self._t5(word)["input_ids"][:-1]
            self._words[word] = (clip, t5)
        return self._words[word]

    def caption(self, caption: str, rng: random.Random | None = None) -> tuple[list[int], list[int]]:
        """CLIP's and T5's tokens without start, end and padding; -1 is an unknown token."""
        clip: list[int] = []
        t5: list[int] = []
        for word in caption.split():
            if word == UNKNOWN_WORD:
                assert rng is not None
                clip += [-1] * rng.choice((1, 1, 2, 3))
                t5 += [-1] * rng.choice((1, 2, 3))
            else:
                first, second = self.word(word)
                clip, t5 = clip + first, t5 + second
        return clip, t5


class Vocabulary:
    """A compact numbering: row 0 is "unknown", row i + 1 is the i-th known token."""

    def __init__(self, known: list[int], size: int):
        self.known, self.size = sorted(set(known)), size
        self._row = {token: row + 1 for row, token in enumerate(self.known)}

    def __len__(self) -> int:
        return len(self.known) + 1

    def rows(self, tokens: list[int]) -> list[int]:
        """Compact rows of token numbers."""
        return [self._row.get(token, 0) for token in tokens]

    def expand(self, table: Tensor) -> Tensor:
        """The full embedding table [size, D] of a compact one [len(self), D]."""
        full = table[:1].expand(self.size, -1).clone()
        full[torch.tensor(self.known)] = table[1:]
        return full

    def compact(self, full: Tensor) -> Tensor:
        """Inverse of `expand`: [size, D] -> [len(self), D]."""
        unknown = next(token for token in range(self.size) if token not in self._row)
        return torch.cat((full[unknown : unknown + 1], full[torch.tensor(self.known)]))


class FullVocabulary(Vocabulary):
    """The tokenizer's own numbering, for the tables of the shipped file."""

    def __init__(self, size: int):
        super().__init__([], size)

    def __len__(self) -> int:
        return self.size

    def rows(self, tokens: list[int]) -> list[int]:
        return tokens

    def expand(self, table: Tensor) -> Tensor:
        return table


def add_noise_words(caption: str, rng: random.Random) -> str:
    """Put one or two words that mean nothing here into a caption."""
    words = caption.split()
    for _ in range(rng.choice((1, 2))):
        words.insert(rng.choice((0, len(words), len(words), rng.randint(0, len(words)))), UNKNOWN_WORD)
    return " ".join(words)
