"""Prompts through a host CLIP: tokens, counts, and conditioning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...mmdit_core.text import TextStrengths, TextWidths, cut_t5, scale_parts

# The host's names for the encoders' tokens -> (attribute of its text model, what people call it).
ENCODERS = {"l": ("clip_l", "CLIP-L"), "g": ("clip_g", "CLIP-G"), "t5xxl": ("t5xxl", "T5")}
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
            _content(clip, key, tokens[key]),
            cut if key == "t5xxl" else 0,
            present(clip, key),
        )
        for key in tokens
    ]
    return tokens, counts


def _content(clip, key: str, chunks: list[list[tuple[Any, float]]]) -> int:
    """Tokens that carry text: all but start, end and padding."""
    blank = clip.tokenize("")[key][0]
    special = {token for token, *_ in blank if isinstance(token, int)}
    return sum(1 for chunk in chunks for token, *_ in chunk if not (isinstance(token, int) and token in special))


def encode(clip, tokens: Tokens, strengths: TextStrengths):
    """The host's CONDITIONING for tokens, each encoder's part scaled by its strength (SD3 text models only)."""
    conditioning = clip.encode_from_tokens_scheduled(tokens)
    if strengths == TextStrengths():
        return conditioning
    t5_tokens = sum(len(chunk) for chunk in tokens["t5xxl"]) if present(clip, "t5xxl") else 0

    def scaled(context: torch.Tensor, options: dict[str, Any]):
        context, pooled = scale_parts(
            context,
            options.get("pooled_output"),
            strengths,
            clip_tokens=context.shape[1] - t5_tokens,
            widths=widths(clip),
        )
        return [context, {**options, "pooled_output": pooled}]

    return [scaled(context, options) for context, options in conditioning]


def zeros_like(conditioning):
    """The same conditioning with all text zero: what a dropped prompt was in SD3's training."""

    def zeroed(context: torch.Tensor, options: dict[str, Any]):
        pooled = options.get("pooled_output")
        options = {**options, "pooled_output": None if pooled is None else torch.zeros_like(pooled)}
        return [torch.zeros_like(context), options]

    return [zeroed(context, options) for context, options in conditioning]
