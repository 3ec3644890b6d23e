"""Token ids of captions, with a cache of words over ComfyUI's CLIP and T5 tokenizers.

Neither tokenizer merges across a space, so the tokens of a caption are those of its words (a test compares whole
captions). Training uses compact embedding tables of the tokens in captions; the exported file has full tables, in which
all other tokens have one "unknown" embedding.
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
UNKNOWN_WORD = "\0"  # a word that captions never contain: one to three unknown tokens


class Tokenizer:
    """Token ids of captions for CLIP and T5.

    Args: folder, ComfyUI's `comfy` with `sd1_tokenizer` and `text_encoders/t5_tokenizer`.
    """

    def __init__(self, folder: Path):
        from transformers import CLIPTokenizer, T5TokenizerFast

        self._clip = CLIPTokenizer.from_pretrained(folder / "sd1_tokenizer")
        self._t5 = T5TokenizerFast.from_pretrained(folder / "text_encoders" / "t5_tokenizer")
        self._words: dict[str, tuple[list[int], list[int]]] = {}

    def word(self, word: str) -> tuple[list[int], list[int]]:
        """CLIP's and T5's token ids of one word (any text without spaces)."""
        if word not in self._words:
            clip = self._clip(word)["input_ids"][1:-1]
            t5 = self._t5(word)["input_ids"][:-1]
            self._words[word] = (clip, t5)
        return self._words[word]

    def caption(self, caption: str, rng: random.Random | None = None) -> tuple[list[int], list[int]]:
        """CLIP's and T5's token ids without start, end and padding; -1 is an unknown token."""
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
    """Rows of a compact embedding table: row 0 is "unknown", row i + 1 the i-th known token."""

    def __init__(self, known: list[int], size: int):
        self.known, self.size = sorted(set(known)), size
        self._row = {token: row + 1 for row, token in enumerate(self.known)}

    def __len__(self) -> int:
        return len(self.known) + 1

    def rows(self, tokens: list[int]) -> list[int]:
        """The rows of token ids."""
        return [self._row.get(token, 0) for token in tokens]

    def expand(self, table: Tensor) -> Tensor:
        """Expand a compact embedding table [len(self), D] to a full one [size, D]."""
        full = table[:1].expand(self.size, -1).clone()
        full[torch.tensor(self.known)] = table[1:]
        return full

    def compact(self, full: Tensor) -> Tensor:
        """Inverse of `expand`: [size, D] -> [len(self), D]."""
        unknown = next(token for token in range(self.size) if token not in self._row)
        return torch.cat((full[unknown : unknown + 1], full[torch.tensor(self.known)]))


class FullVocabulary(Vocabulary):
    """The tokenizer's own ids as rows, for the tables of the exported file."""

    def __init__(self, size: int):
        super().__init__([], size)

    def __len__(self) -> int:
        return self.size

    def rows(self, tokens: list[int]) -> list[int]:
        """The ids."""
        return tokens

    def expand(self, table: Tensor) -> Tensor:
        """The table."""
        return table


def add_noise_words(caption: str, rng: random.Random) -> str:
    """Insert one or two unknown words into a caption."""
    words = caption.split()
    for _ in range(rng.choice((1, 2))):
        words.insert(rng.choice((0, len(words), len(words), rng.randint(0, len(words)))), UNKNOWN_WORD)
    return " ".join(words)
