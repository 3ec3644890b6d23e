"""Prompts through a host CLIP: tokens, counts, and conditioning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ....mmdit_core.text.encoders import TextStrengths, TextWidths, cut_t5, scale_parts
from ....mmdit_core.text.tokens import WORD_START, EncoderTokens, TokenMap, words_of_entries

# The host's names for the encoders' tokens -> (attribute of its text model, what people call it).
ENCODERS = {"l": ("clip_l", "CLIP-L"), "g": ("clip_g", "CLIP-G"), "t5xxl": ("t5xxl", "T5")}
STRENGTH_OF = {"l": "clip_l", "g": "clip_g", "t5xxl": "t5"}  # -> the field of TextStrengths
TOKEN_MAP = "mmdit_tokens"  # the key of a conditioning's options that holds its token map
Tokens = dict[str, Any]
Chunks = list[list[tuple[Any, float]]]


@dataclass(frozen=True)
class Count:
    """Tokens of one encoder for one prompt, start, end and padding not counted.

    used: how many the encoder reads, in so many chunks; cut: those it does not read, as they are written; present: the
    CLIP holds the encoder.
    """

    key: str
    label: str
    used: int
    chunks: int
    cut: tuple[str, ...]
    present: bool


@dataclass(frozen=True)
class _Content:
    """A token that carries text: which chunk, where in it, and its entry in the vocabulary."""

    chunk: int
    place: int
    piece: str


class Encoders:
    """A host CLIP: which encoders it holds, and what its tokenizer makes of an empty prompt, which is asked once."""

    def __init__(self, clip):
        self.clip = clip
        self.empty: Tokens = clip.tokenize("")

    @property
    def names(self) -> list[str]:
        """The token keys that this CLIP's tokenizer makes: ["l", "g", "t5xxl"] for SD3, others for other models."""
        return [*(key for key in ENCODERS if key in self.empty), *(key for key in self.empty if key not in ENCODERS)]

    @property
    def is_sd3(self) -> bool:
        return set(self.empty) == set(ENCODERS)

    @property
    def missing(self) -> list[str]:
        """Token keys of the SD3 encoders that this CLIP lacks."""
        return [key for key in ENCODERS if not self.present(key)]

    @property
    def widths(self) -> TextWidths:
        """Channel widths of an SD3 text model; encoders that it lacks have SD3's own width."""
        own = getattr(self.clip.cond_stage_model, "widths", None)
        return own if own is not None else TextWidths()

    @cached_property
    def _byte_level(self) -> dict[str, bool]:
        """Whether a vocabulary's letters stand for bytes, as CLIP's and Qwen's do; others mark spaces, as T5's do."""
        return {key: WORD_START[0] not in getattr(self._tokenizer(key), "inv_vocab", {}).values() for key in self.empty}

    def present(self, key: str) -> bool:
        """Whether the CLIP holds that encoder's weights; SD3's tokenizer makes tokens for all three regardless."""
        attribute = ENCODERS[key][0] if key in ENCODERS else key
        return getattr(self.clip.cond_stage_model, attribute, None) is not None

    def tokenize(self, prompts: dict[str, str], t5_limit: int | None) -> tuple[Tokens, list[Count]]:
        """Tokens of a prompt, or of one prompt for each encoder.

        Args: prompts, token key -> text; t5_limit, the most T5 tokens, or None.
        Returns: the host's tokens, CLIP-L and CLIP-G brought to one length; a Count for each encoder.
        """
        cache = {"": self.empty, **{text: self.clip.tokenize(text) for text in set(prompts.values()) if text}}
        tokens: Tokens = {key: cache[text][key] for key, text in prompts.items()}
        cut: dict[str, tuple[str, ...]] = {}
        if "t5xxl" in tokens and t5_limit is not None:
            parts = [cut_t5(self._less_padding("t5xxl", chunk, t5_limit), t5_limit) for chunk in tokens["t5xxl"]]
            tokens["t5xxl"] = [kept for kept, _ in parts]
            cut["t5xxl"] = tuple(self._written("t5xxl", token) for _, dropped in parts for token, *_ in dropped)
        if "l" in tokens and "g" in tokens:
            length = max(len(tokens["l"]), len(tokens["g"]))
            for key in ("l", "g"):
                tokens[key] = tokens[key] + self.empty[key] * (length - len(tokens[key]))
        return tokens, [
            Count(
                key,
                label_of(key),
                len(self._content(key, chunks)),
                len(chunks),
                cut.get(key, ()),
                self.present(key),
            )
            for key, chunks in tokens.items()
        ]

    def token_map(self, tokens: Tokens, context: torch.Tensor, dropped: Collection[str] = ()) -> TokenMap:
        """Where each encoder's words stand in a context that was encoded from these tokens.

        Args: context [1, L, W]; dropped, token keys of encoders whose part is zeros.
        """
        lengths = {key: sum(len(chunk) for chunk in chunks) for key, chunks in tokens.items() if self.present(key)}
        clips = [lengths[key] for key in ("l", "g") if key in lengths]
        # FLUX takes CLIP's pooled output alone: there the context is T5's.
        sequence = {"t5xxl"} if "t5xxl" in lengths and context.shape[1] == lengths["t5xxl"] else set(lengths)
        before_t5 = min(clips) if clips and sequence != {"t5xxl"} else 0
        encoders = []
        for key in lengths:
            if key not in sequence:
                continue
            is_clip = key in ("l", "g")
            first = 0 if is_clip or key not in ENCODERS else before_t5
            # Some text models cut their template off the front of what they return.
            first -= max(0, lengths[key] - context.shape[1]) if len(sequence) == 1 else 0
            starts = [sum(len(chunk) for chunk in tokens[key][:number]) for number in range(len(tokens[key]))]
            entries = [
                (token.piece, first + starts[token.chunk] + token.place) for token in self._content(key, tokens[key])
            ]
            last = min(first + lengths[key], context.shape[1])
            words = words_of_entries([entry for entry in entries if entry[1] >= 0], self._byte_level[key])
            encoders.append(
                EncoderTokens(label_of(key), is_clip, max(first, 0), last, words, present=key not in dropped)
            )
        for key in tokens.keys() & ENCODERS.keys() - lengths.keys():
            encoders.append(EncoderTokens(label_of(key), key != "t5xxl", 0, 0, (), present=False))
        return TokenMap(tuple(encoders))

    def encode(self, tokens: Tokens, strengths: TextStrengths):
        """The host's CONDITIONING for tokens, each encoder's part scaled by its strength (SD3 text models only).

        Each entry carries its token map, which survives the host's combine, area, mask and timestep-range nodes.
        """
        conditioning = self.clip.encode_from_tokens_scheduled(tokens)
        t5_tokens = sum(len(chunk) for chunk in tokens.get("t5xxl", ())) if self.present("t5xxl") else 0
        dropped = {key for key, name in STRENGTH_OF.items() if not getattr(strengths, name)}

        def finished(context: torch.Tensor, options: dict[str, Any]):
            options = {**options, TOKEN_MAP: self.token_map(tokens, context, dropped)}
            if strengths == TextStrengths():
                return [context, options]
            context, pooled = scale_parts(
                context,
                options.get("pooled_output"),
                strengths,
                clip_tokens=context.shape[1] - t5_tokens,
                widths=self.widths,
            )
            return [context, {**options, "pooled_output": pooled}]

        return [finished(context, options) for context, options in conditioning]

    def zeros(self, tokens: Tokens):
        """Conditioning of these tokens' length with all text zero: what a dropped prompt was in SD3's training."""

        def zeroed(context: torch.Tensor, options: dict[str, Any]):
            pooled = options.get("pooled_output")
            options = {
                **options,
                "pooled_output": None if pooled is None else torch.zeros_like(pooled),
                TOKEN_MAP: self.token_map(tokens, context, dropped=tokens),
            }
            return [torch.zeros_like(context), options]

        return [zeroed(context, options) for context, options in self.clip.encode_from_tokens_scheduled(tokens)]

    def _tokenizer(self, key: str):
        return getattr(self.clip.tokenizer, ENCODERS[key][0] if key in ENCODERS else key, self.clip.tokenizer)

    def _less_padding(self, key: str, chunk: list[tuple[Any, float]], limit: int) -> list[tuple[Any, float]]:
        """A chunk without the padding that lies beyond a limit."""
        pad, length = {getattr(self._tokenizer(key), "pad_token", None)}, len(chunk)
        while length > limit and _is_one_of(chunk[length - 1][0], pad):
            length -= 1
        return chunk[:length]

    def _written(self, key: str, token: Any) -> str:
        """A token as a person may read it."""
        if not isinstance(token, int):
            return "(embedding)"
        return getattr(self._tokenizer(key), "inv_vocab", {}).get(token, "").lstrip("".join(WORD_START))

    def _content(self, key: str, chunks: Chunks) -> list[_Content]:
        """Tokens that carry text: all but start, end, padding and whatever template the tokenizer puts around them."""
        tokenizer = self._tokenizer(key)
        vocabulary = getattr(tokenizer, "inv_vocab", {})
        fill = {getattr(tokenizer, f"{name}_token", None) for name in ("start", "end", "pad")}
        empty = [token for token, *_ in self.empty[key][0]]
        content = []
        for number, chunk in enumerate(chunks):
            ids = [token for token, *_ in chunk]
            # The template is what this prompt shares with an empty one. Ids are compared where they stand: a template's
            # words may be the prompt's too, and CLIP-G pads with the "!" that a prompt may hold.
            first = _shared(ids, empty)
            last = len(ids) - min(_shared(ids[::-1], empty[::-1]), max(0, len(empty) - first))
            while first < last and _is_one_of(ids[last - 1], fill):
                last -= 1
            while first < last and _is_one_of(ids[first], fill):
                first += 1
            content += [
                _Content(number, place, vocabulary.get(ids[place], ""))
                for place in range(first, last)
                if isinstance(ids[place], int)
            ]
        return content


def label_of(key: str) -> str:
    """What people call an encoder."""
    return ENCODERS[key][1] if key in ENCODERS else key


def _is_one_of(token: Any, ids: Collection[Any]) -> bool:
    return isinstance(token, int) and token in ids  # others are embeddings


def _shared(a: list[Any], b: list[Any]) -> int:
    """How many tokens two lists begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if not isinstance(x, int) or x != y), min(len(a), len(b)))
