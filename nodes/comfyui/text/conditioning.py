"""Prompts through ComfyUI's CLIP: tokens, token counts and conditioning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ....mmdit_core.text.encoders import TextStrengths, TextWidths, cut_t5, scale_parts
from ....mmdit_core.text.tokens import WORD_START, EncoderTokens, TokenMap, words_of_entries

# ComfyUI's token key of an encoder -> (its attribute in the text model, its label).
ENCODERS = {"l": ("clip_l", "CLIP-L"), "g": ("clip_g", "CLIP-G"), "t5xxl": ("t5xxl", "T5")}
STRENGTH_OF = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5"}  # token key -> field of TextStrengths
TOKEN_MAP = "mmdit_tokens"  # a conditioning's option with its token map
Tokens = dict[str, Any]  # token key -> chunks
Chunk = list[tuple[Any, float]]  # (token id or embedding, weight)


@dataclass(frozen=True)
class TokenCount:
    """The tokens of one prompt in one encoder, without start, end and padding.

    Fields: key, label of the encoder; used, the number that it reads, in so many chunks; cut, the tokens that it does
    not read, as text; present, False if the CLIP lacks the encoder.
    """

    key: str
    label: str
    used: int
    chunks: int
    cut: tuple[str, ...]
    present: bool


class Encoders:
    """The text encoders of a CLIP, and the tokens of an empty prompt, which are computed once."""

    def __init__(self, clip):
        self.clip = clip
        self.empty: Tokens = clip.tokenize("")

    @property
    def names(self) -> list[str]:
        """The token keys of this CLIP's tokenizer: ["l", "g", "t5xxl"] for SD3."""
        return [*(key for key in ENCODERS if key in self.empty), *(key for key in self.empty if key not in ENCODERS)]

    @property
    def is_sd3(self) -> bool:
        """True if the tokenizer is SD3's."""
        return set(self.empty) == set(ENCODERS)

    @property
    def missing(self) -> list[str]:
        """The token keys of SD3's encoders that this CLIP lacks."""
        return [key for key in ENCODERS if not self.is_present(key)]

    @cached_property
    def _byte_level(self) -> dict[str, bool]:
        """True for vocabularies whose letters are bytes (CLIP, Qwen), False for those that mark spaces (T5)."""
        return {key: WORD_START[0] not in self._vocabulary(key).values() for key in self.empty}

    def is_present(self, key: str) -> bool:
        """True if the CLIP has the encoder's weights; SD3's tokenizer makes tokens for absent ones, too."""
        return getattr(self.clip.cond_stage_model, ENCODERS.get(key, (key,))[0], None) is not None

    def tokenize(self, prompts: dict[str, str], t5_limit: int | None) -> tuple[Tokens, list[TokenCount]]:
        """Tokenize one prompt for each encoder.

        Args: prompts, token key -> text; t5_limit, the largest number of T5 tokens, None for all.
        Returns: ComfyUI's tokens, CLIP-L and CLIP-G padded to equal length; one count for each encoder.
        """
        cache = {"": self.empty, **{text: self.clip.tokenize(text) for text in set(prompts.values()) if text}}
        tokens: Tokens = {key: cache[text][key] for key, text in prompts.items()}
        cut: dict[str, tuple[str, ...]] = {}
        if "t5xxl" in tokens and t5_limit is not None:
            parts = [cut_t5(self._without_padding("t5xxl", chunk, t5_limit), t5_limit) for chunk in tokens["t5xxl"]]
            tokens["t5xxl"] = [used for used, _ in parts]
            cut["t5xxl"] = tuple(self._as_text("t5xxl", token) for _, dropped in parts for token, *_ in dropped)
        if "l" in tokens and "g" in tokens:
            length = max(len(tokens["l"]), len(tokens["g"]))
            for key in ("l", "g"):
                tokens[key] = tokens[key] + self.empty[key] * (length - len(tokens[key]))
        counts = []
        for key, chunks in tokens.items():
            used, present = len(self._content(key, chunks)), self.is_present(key)
            counts.append(TokenCount(key, label_of(key), used, len(chunks), cut.get(key, ()), present))
        return tokens, counts

    def token_map(self, tokens: Tokens, context: torch.Tensor, dropped: Collection[str] = ()) -> TokenMap:
        """Locate each encoder's words in the context that was encoded from these tokens.

        Args: context [1, L, W]; dropped, token keys of encoders whose part is zeros.
        """
        lengths = {key: sum(map(len, chunks)) for key, chunks in tokens.items() if self.is_present(key)}
        clips = [lengths[key] for key in ("l", "g") if key in lengths]
        total = context.shape[1]
        # FLUX uses only the pooled output of CLIP: its context is T5's alone.
        in_context = {"t5xxl"} if lengths.get("t5xxl") == total else set(lengths)
        before_t5 = min(clips) if clips and in_context != {"t5xxl"} else 0
        encoders = []
        for key, length in lengths.items():
            if key not in in_context:
                continue
            first = before_t5 if key == "t5xxl" else 0
            # Some text models remove their template from the beginning of their output.
            first -= max(0, length - total) if len(in_context) == 1 else 0
            entries = [(entry, first + index) for index, entry in self._content(key, tokens[key]) if first + index >= 0]
            words = words_of_entries(entries, self._byte_level[key])
            stop, is_clip = min(first + length, total), key in ("l", "g")
            encoders.append(EncoderTokens(label_of(key), is_clip, max(first, 0), stop, words, key not in dropped))
        for key in tokens.keys() & ENCODERS.keys() - lengths.keys():
            encoders.append(EncoderTokens(label_of(key), key != "t5xxl", 0, 0, (), present=False))
        return TokenMap(tuple(encoders))

    def encode(self, tokens: Tokens, strengths: TextStrengths):
        """Encode tokens to a CONDITIONING, each encoder's part scaled by its strength (SD3 text models only).

        Each entry carries its token map, which ComfyUI's combine, area, mask and timestep-range nodes keep.
        """
        t5_tokens = sum(map(len, tokens.get("t5xxl", ()))) if self.is_present("t5xxl") else 0
        # Our own text model has widths; ComfyUI's has SD3's.
        widths = getattr(self.clip.cond_stage_model, "widths", None) or TextWidths()
        dropped = {key for key, name in STRENGTH_OF.items() if not getattr(strengths, name)}
        conditioning = []
        for context, options in self.clip.encode_from_tokens_scheduled(tokens):
            options = {**options, TOKEN_MAP: self.token_map(tokens, context, dropped)}
            if strengths != TextStrengths():
                clip_tokens, pooled = context.shape[1] - t5_tokens, options.get("pooled_output")
                context, options["pooled_output"] = scale_parts(
                    context, pooled, strengths, clip_tokens=clip_tokens, widths=widths
                )
            conditioning.append([context, options])
        return conditioning

    def zeros(self, tokens: Tokens):
        """A CONDITIONING of zeros in the tokens' length: a dropped prompt in SD3's training."""
        conditioning = []
        for context, options in self.clip.encode_from_tokens_scheduled(tokens):
            pooled = options.get("pooled_output")
            pooled = None if pooled is None else torch.zeros_like(pooled)
            token_map = self.token_map(tokens, context, dropped=tokens)
            conditioning.append([torch.zeros_like(context), {**options, "pooled_output": pooled, TOKEN_MAP: token_map}])
        return conditioning

    def _tokenizer(self, key: str):
        return getattr(self.clip.tokenizer, ENCODERS.get(key, (key,))[0], self.clip.tokenizer)

    def _vocabulary(self, key: str) -> dict[int, str]:
        return getattr(self._tokenizer(key), "inv_vocab", {})

    def _without_padding(self, key: str, chunk: Chunk, limit: int) -> Chunk:
        """A chunk without the padding beyond a limit."""
        pad, length = {getattr(self._tokenizer(key), "pad_token", None)}, len(chunk)
        while length > limit and _is_one_of(chunk[length - 1][0], pad):
            length -= 1
        return chunk[:length]

    def _as_text(self, key: str, token: Any) -> str:
        if not isinstance(token, int):
            return "(embedding)"
        return self._vocabulary(key).get(token, "").lstrip("".join(WORD_START))

    def _content(self, key: str, chunks: list[Chunk]) -> list[tuple[int, str]]:
        """The tokens of the prompt itself, without start, end, padding and the tokenizer's template.

        Returns: (index over all chunks, entry of the vocabulary) of each.
        """
        tokenizer, vocabulary = self._tokenizer(key), self._vocabulary(key)
        fill = {getattr(tokenizer, f"{name}_token", None) for name in ("start", "end", "pad")}
        empty = [token for token, *_ in self.empty[key][0]]
        content, offset = [], 0
        for chunk in chunks:
            ids = [token for token, *_ in chunk]
            # The template is what a prompt shares with the empty prompt. Ids are compared by position: the template's
            # words may be in the prompt, too, and CLIP-G pads with the "!" that a prompt may contain.
            first = _shared(ids, empty)
            last = len(ids) - min(_shared(ids[::-1], empty[::-1]), max(0, len(empty) - first))
            while first < last and _is_one_of(ids[last - 1], fill):
                last -= 1
            while first < last and _is_one_of(ids[first], fill):
                first += 1
            content += [(offset + i, vocabulary.get(ids[i], "")) for i in range(first, last) if isinstance(ids[i], int)]
            offset += len(ids)
        return content


def label_of(key: str) -> str:
    """The label of an encoder: "CLIP-L"; its token key if it has none."""
    return ENCODERS[key][1] if key in ENCODERS else key


def _is_one_of(token: Any, ids: Collection[Any]) -> bool:
    return isinstance(token, int) and token in ids  # all other tokens are embeddings


def _shared(a: list[Any], b: list[Any]) -> int:
    """The length of the common beginning of two lists of ids; an embedding ends it."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((index for index, (x, y) in pairs if not isinstance(x, int) or x != y), min(len(a), len(b)))
