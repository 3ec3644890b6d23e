"""One encoder's tokenizer: its label, and which tokens of a prompt are the prompt's own words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ....mmdit_core.text.tokens import BYTE_LETTERS, WORD_START, Word, normalise, words_of_entries

# ComfyUI's token key of an encoder -> (its attribute in the text model and the tokenizer, its label).
ENCODERS = {"l": ("clip_l", "CLIP-L"), "g": ("clip_g", "CLIP-G"), "t5xxl": ("t5xxl", "T5")}
CLIPS = ("l", "g", "h")
# Token keys of other encoders -> their labels.
LABELS = {
    "h": "CLIP-H",
    "pile_t5xl": "Pile-T5",
    "umt5xxl": "UMT5",
    "qwen25_7b": "Qwen2.5-VL 7B",
    "qwen25_3b": "Qwen2.5-VL 3B",
    "qwen3_2b": "Ovis 2.5",
    "qwen3_4b": "Qwen3 4B",
    "qwen3_8b": "Qwen3 8B",
    "qwen3vl_4b": "Qwen3-VL 4B",
    "qwen3vl_8b": "Qwen3-VL 8B",
    "gemma2_2b": "Gemma 2 2B",
    "gemma3_4b": "Gemma 3 4B",
    "gemma": "Gemma 3 4B",
    "gemma3_12b": "Gemma 3 12B",
    "byt5": "ByT5",
    "gpt_oss": "GPT-OSS 20B",
    "qwen3_06b": "Qwen3 0.6B",
    "mistral3_24b": "Mistral 3 24B",
    "ministral3_3b": "Ministral 3 3B",
    "llama": "Llama 3 8B",
}
OTHER_NAMES = {"byt5": "byt5_small"}  # token key -> its attribute in the text model, if that has another name
# Entries that begin a chat turn -> the entry that ends its header with the role; "" for a turn of the user without one.
HEADERS = {
    "<|im_start|>": "\u010a",
    "<|start_header_id|>": "<|end_header_id|>",
    "[INST]": "",
    "<start_of_turn>": "\n",
    "<|start|>": "<|message|>",
}
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "[/INST]", "[/SYSTEM_PROMPT]", "<end_of_turn>", "<|end|>")
SYSTEM = "[SYSTEM_PROMPT]"
# HunyuanImage gives ByT5 what a prompt has in quotes, each in this sentence.
QUOTED = re.compile(r'Text "(.*?)"\. (?=Text "|$)', re.S)
BYT5_FIRST = 3  # the id of byte 0
# CLIPTextEncodeLumina2 writes its system prompt before this mark, as text.
PROMPT_START = normalise("<Prompt Start>")

Chunk = Sequence[tuple[Any, ...]]  # (token id or embedding, weight, ...)
Run = list[tuple[int, str]]  # neighbouring tokens: (index over all chunks, entry of the vocabulary)


def label_of(key: str) -> str:
    """The label of an encoder: "CLIP-L"; its token key if it has none."""
    return ENCODERS[key][1] if key in ENCODERS else LABELS.get(key, key)


def attribute_of(holder: Any, key: str) -> Any:
    """The part of a CLIP's tokenizer or text model that reads a token key; None without one."""
    if key in ENCODERS and hasattr(holder, ENCODERS[key][0]):
        return getattr(holder, ENCODERS[key][0])
    if getattr(holder, "clip_name", None) == key:  # ComfyUI's SD1Tokenizer and SD1ClipModel name their one attribute
        return getattr(holder, holder.clip, None)
    return getattr(holder, key, getattr(holder, OTHER_NAMES.get(key, key), None))


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's entries. Fields: key, of its tokens; tokenizer; empty, the ids of an empty prompt's first chunk."""

    key: str
    tokenizer: Any
    empty: tuple[Any, ...]

    @cached_property
    def entries(self) -> dict[int, str]:
        """Token id -> entry; {} for a tokenizer without a vocabulary of its own."""
        if self.key == "byt5":  # its entries are the bytes themselves, not the letters that other vocabularies use
            return {BYT5_FIRST + byte: letter for byte, letter in enumerate(BYTE_LETTERS)}
        return getattr(self.tokenizer, "inv_vocab", {})

    @cached_property
    def is_byte_level(self) -> bool:
        """True if letters of entries are bytes (CLIP, Qwen, Llama 3, Mistral), False if they are text (T5, Gemma)."""
        return WORD_START[0] not in self.entries.values()

    @cached_property
    def fill(self) -> set[Any]:
        """The ids of the tokens before, after and behind a prompt."""
        return {getattr(self.tokenizer, f"{name}_token", None) for name in ("start", "end", "pad")}

    @cached_property
    def special(self) -> set[int]:
        """The ids of tokens that are no text."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        if inner is not None and hasattr(inner, "get_added_vocab"):
            return set(inner.get_added_vocab().values())
        return set((getattr(inner, "special_tokens", None) or {}).values())  # SentencePiece's

    def content(self, chunks: Sequence[Sequence[Any]]) -> list[Run]:
        """The tokens of the prompt itself, without start, end, padding and the tokenizer's template.

        Args: chunks, of token ids; all that is not an int is an embedding.
        """
        runs: list[Run] = []
        offset = 0
        for ids in chunks:
            joins = True  # to the chunk before: a long word may be divided among two chunks
            for index in self._own(ids):
                if not runs or (not joins and runs[-1][-1][0] != offset + index - 1):
                    runs.append([])
                runs[-1].append((offset + index, self.entries.get(ids[index], "")))
                joins = False
            offset += len(ids)
        return runs

    def words(self, runs: Sequence[Run]) -> tuple[Word, ...]:
        """The words of tokens, each with its position. Args: runs, as of `content`, with positions for indices."""
        words: list[Word] = []
        for run in runs:
            if words and self.key == "byt5":
                words.append(Word('"', ()))  # no phrase is found across two quotes
            words += words_of_entries([(entry, at) for at, entry in run], self.is_byte_level)
        if not self.key.startswith("gemma"):
            return tuple(words)
        text = "".join(word.text for word in words)
        before = text.rfind(PROMPT_START) + len(PROMPT_START) if PROMPT_START in text else 0
        while before > 0:
            before -= len(words.pop(0).text)
        return tuple(words)

    def _own(self, ids: Sequence[Any]) -> Iterator[int]:
        """The indices in a chunk of the prompt's own tokens."""
        if self.key == "byt5":
            yield from _quoted(ids)
            return
        # The template is what a prompt shares with the empty prompt. Ids are compared by position: the template's
        # words may be in the prompt, too, and CLIP-G pads with the "!" that a prompt may contain.
        first, last = _shared(ids, self.empty), len(ids)
        of_user = self._of_user(ids)
        if of_user is None:
            last -= min(_shared(ids[::-1], self.empty[::-1]), max(0, len(self.empty) - first))
            while first < last and _is_one_of(ids[last - 1], self.fill):
                last -= 1
            while first < last and _is_one_of(ids[first], self.fill):
                first += 1
        for index in range(first, last):
            if isinstance(ids[index], int) and (of_user is None or (of_user[index] and ids[index] not in self.special)):
                yield index

    def _of_user(self, ids: Sequence[Any]) -> list[bool] | None:
        """For each token, whether it is in a turn of the user; None if the chunk is no chat.

        A node's own template may begin within such a turn: text before the first header counts as the user's.
        """
        header, is_chat, is_users = None, False, True
        of_user = []
        role = ""
        for token in ids:
            entry = self.entries.get(token, "") if isinstance(token, int) else ""
            marks = entry in HEADERS or entry in TURN_ENDS or entry == SYSTEM
            of_user.append(is_users and header is None and not marks)
            if header is not None:
                role += entry if header not in entry else ""
                if header in entry:
                    header, is_users = None, role == "user"
            elif entry in HEADERS:
                header, role, is_users = HEADERS[entry] or None, "", True
            elif marks:
                is_users = False
            is_chat |= marks
        return of_user if is_chat else None


def _is_one_of(token: Any, ids: Collection[Any]) -> bool:
    return isinstance(token, int) and token in ids  # all other tokens are embeddings


def _quoted(ids: Sequence[Any]) -> Iterator[int]:
    """The indices of ByT5's tokens of quoted text."""
    text = [chr(token - BYT5_FIRST) if isinstance(token, int) and token >= BYT5_FIRST else "" for token in ids]
    length = text.index("") if "" in text else len(text)
    for quoted in QUOTED.finditer("".join(text[:length])):
        yield from range(*quoted.span(1))


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The length of the common beginning of two lists of ids; an embedding ends it."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if not isinstance(x, int) or x != y), min(len(a), len(b)))
