"""Prompts through a host CLIP: tokens, counts, and conditioning."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch

from ...mmdit_core.text import TextStrengths, TextWidths, cut_t5, scale_parts
from ...mmdit_core.tokens import WORD_START, EncoderTokens, TokenMap, words_of_entries

# The host's names for the encoders' tokens -> (attribute of its text model, what people call it).
ENCODERS = {"l": ("clip_l", "CLIP-L"), "g": ("clip_g", "CLIP-G"), "t5xxl": ("t5xxl", "T5")}
TOKEN_MAP = "mmdit_tokens"  # the key of a conditioning's options that holds its token map
Tokens = dict[str, Any]


@dataclass(frozen=True)
class Count:
    """Tokens of one encoder for one prompt, start, end and padding not counted; present: the CLIP holds the encoder."""

    label: str
    used: int
    cut: int
    present: bool


def encoder_names(clip) -> list[str]:
    """The token keys that this CLIP's tokenizer makes: ["g", "l", "t5xxl"] for SD3, others for other models."""
    return list(clip.tokenize(""))


def is_sd3(clip) -> bool:
    return set(encoder_names(clip)) == set(ENCODERS)


def present(clip, key: str) -> bool:
    """Whether the CLIP holds that encoder's weights; SD3's tokenizer makes tokens for all three regardless."""
    attribute = ENCODERS[key][0] if key in ENCODERS else key
    return getattr(clip.cond_stage_model, attribute, None) is not None


def missing_encoders(clip) -> list[str]:
    """Labels of the SD3 encoders that this CLIP lacks."""
    return [label for key, (_, label) in ENCODERS.items() if not present(clip, key)]


def widths(clip) -> TextWidths:
    """Channel widths of an SD3 text model; encoders that it lacks have SD3's own width."""
    own = getattr(clip.cond_stage_model, "widths", None)
    return own if own is not None else TextWidths()


@dataclass(frozen=True)
class _Content:
    """A token that carries text: which chunk, where in it, and its entry in the vocabulary."""

    chunk: int
    place: int
    piece: str


def tokenize(clip, prompts: dict[str, str], t5_limit: int | None) -> tuple[Tokens, list[Count]]:
    """Tokens of a prompt, or of one prompt for each encoder.

    Args: prompts, token key -> text; t5_limit, the most T5 tokens, or None.
    Returns: the host's tokens, CLIP-L and CLIP-G brought to one length; a Count for each encoder.
    """
    cache = {text: clip.tokenize(text) for text in dict.fromkeys(prompts.values())}
    tokens: Tokens = {key: cache[text][key] for key, text in prompts.items()}
    cut = 0
    if "t5xxl" in tokens and t5_limit is not None:
        chunks = []
        for chunk in tokens["t5xxl"]:
            kept, dropped = cut_t5(chunk, t5_limit)
            chunks.append(kept)
            cut += dropped
        tokens["t5xxl"] = chunks
    if "l" in tokens and "g" in tokens:
        empty = clip.tokenize("")
        length = max(len(tokens["l"]), len(tokens["g"]))
        for key in ("l", "g"):
            tokens[key] = tokens[key] + empty[key] * (length - len(tokens[key]))
    counts = [
        Count(
            ENCODERS[key][1] if key in ENCODERS else key,
            len(_content(clip, key, tokens[key])),
            cut if key == "t5xxl" else 0,
            present(clip, key),
        )
        for key in tokens
    ]
    return tokens, counts


def _tokenizer(clip, key: str):
    return getattr(clip.tokenizer, ENCODERS[key][0] if key in ENCODERS else key, clip.tokenizer)


def _content(clip, key: str, chunks: list[list[tuple[Any, float]]]) -> list[_Content]:
    """Tokens that carry text: all but start, end, padding and whatever template the tokenizer puts around them."""
    tokenizer = _tokenizer(clip, key)
    vocabulary = getattr(tokenizer, "inv_vocab", {})
    fill = {getattr(tokenizer, f"{name}_token", None) for name in ("start", "end", "pad")}
    empty = [token for token, *_ in clip.tokenize("")[key][0]]
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


def _is_one_of(token: Any, ids: Collection[Any]) -> bool:
    return isinstance(token, int) and token in ids  # others are embeddings


def _shared(a: list[Any], b: list[Any]) -> int:
    """How many tokens two lists begin with alike."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((at for at, (x, y) in pairs if not isinstance(x, int) or x != y), min(len(a), len(b)))


def _is_byte_level(clip, key: str) -> bool:
    """Whether a vocabulary's letters stand for bytes, as CLIP's and Qwen's do; the others mark spaces, as T5's do."""
    return WORD_START[0] not in getattr(_tokenizer(clip, key), "inv_vocab", {}).values()


def token_map(clip, tokens: Tokens, context: torch.Tensor, dropped: Collection[str] = ()) -> TokenMap:
    """Where each encoder's words stand in a context that was encoded from these tokens.

    Args: context [1, L, W]; dropped, token keys whose strength is 0.
    """
    lengths = {key: sum(len(chunk) for chunk in chunks) for key, chunks in tokens.items() if present(clip, key)}
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
            (token.piece, first + starts[token.chunk] + token.place) for token in _content(clip, key, tokens[key])
        ]
        label = ENCODERS[key][1] if key in ENCODERS else key
        last = min(first + lengths[key], context.shape[1])
        words = words_of_entries([entry for entry in entries if entry[1] >= 0], _is_byte_level(clip, key))
        encoders.append(EncoderTokens(label, is_clip, max(first, 0), last, words, present=key not in dropped))
    for key in tokens.keys() & ENCODERS.keys() - lengths.keys():
        encoders.append(EncoderTokens(ENCODERS[key][1], key != "t5xxl", 0, 0, (), present=False))
    return TokenMap(tuple(encoders))


def encode(clip, tokens: Tokens, strengths: TextStrengths):
    """The host's CONDITIONING for tokens, each encoder's part scaled by its strength (SD3 text models only).

    Each entry carries its token map, which survives the host's combine, area, mask and timestep-range nodes.
    """
    conditioning = clip.encode_from_tokens_scheduled(tokens)
    t5_tokens = sum(len(chunk) for chunk in tokens.get("t5xxl", ())) if present(clip, "t5xxl") else 0
    dropped = {key for key, name in (("l", "clip_l"), ("g", "clip_g"), ("t5xxl", "t5")) if not getattr(strengths, name)}

    def finished(context: torch.Tensor, options: dict[str, Any]):
        options = {**options, TOKEN_MAP: token_map(clip, tokens, context, dropped)}
        if strengths == TextStrengths():
            return [context, options]
        context, pooled = scale_parts(
            context,
            options.get("pooled_output"),
            strengths,
            clip_tokens=context.shape[1] - t5_tokens,
            widths=widths(clip),
        )
        return [context, {**options, "pooled_output": pooled}]

    return [finished(context, options) for context, options in conditioning]


def zeros_like(conditioning):
    """The same conditioning with all text zero: what a dropped prompt was in SD3's training."""

    def zeroed(context: torch.Tensor, options: dict[str, Any]):
        pooled = options.get("pooled_output")
        options = {**options, "pooled_output": None if pooled is None else torch.zeros_like(pooled)}
        return [torch.zeros_like(context), options]

    return [zeroed(context, options) for context, options in conditioning]
