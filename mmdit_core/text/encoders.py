"""Join the outputs of three text encoders to an MMDiT's inputs: context (token sequence) and pooled (one vector).

context is [CLIP | T5]: CLIP-L and CLIP-G are concatenated on the channels and padded with zeros to the context's width;
T5's tokens follow. pooled is CLIP-L's pooled output, then CLIP-G's. Any encoder may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP_TOKENS = 77


@dataclass(frozen=True)
class TextWidths:
    """Channels of each encoder and of the context; the defaults are SD3's. Raises: ValueError if they do not fit."""

    clip_l: int = 768
    clip_g: int = 1280
    context: int = 4096

    def __post_init__(self) -> None:
        if self.pooled > self.context:
            clip = f"CLIP-L {self.clip_l} and CLIP-G {self.clip_g}"
            raise ValueError(f"TextWidths: {clip} together do not fit into a context of {self.context} channels")

    @property
    def pooled(self) -> int:
        """Channels of the pooled vector."""
        return self.clip_l + self.clip_g


@dataclass(frozen=True)
class TextStrengths:
    """Factors on each encoder's part; 0 replaces it with zeros, as in training with a dropped encoder."""

    clip_l: float = 1.0
    clip_g: float = 1.0
    t5: float = 1.0


def assemble(
    clip_l: tuple[Tensor, Tensor] | None = None,
    clip_g: tuple[Tensor, Tensor] | None = None,
    t5: Tensor | None = None,
    *,
    widths: TextWidths | None = None,
    device: Any = None,
) -> tuple[Tensor, Tensor]:
    """Join the encoders' outputs.

    Args: clip_l and clip_g, (tokens [B, L, W], pooled [B, W]) each; if both are given, the longer one is cut to the
        shorter; t5, tokens [B, n, context]. None for a missing encoder: zeros in CLIP's channels and in the vector, and
        no tokens of T5. device of the result if nothing is given.
    Returns: context [B, L + n, context], pooled [B, clip_l + clip_g].
    Raises: ValueError if T5's width is not the context's.
    Source: Esser et al. 2024, figure 2a.
    """
    w = widths or TextWidths()
    if t5 is not None and t5.shape[-1] != w.context:
        raise ValueError(f"assemble: T5's tokens are {list(t5.shape)}; the context takes [B, n, {w.context}]")
    given = [output[0] for output in (clip_l, clip_g) if output is not None]
    first = given[0] if given else t5
    batch, device = (1, device) if first is None else (first.shape[0], first.device)
    length = min((tokens.shape[1] for tokens in given), default=CLIP_TOKENS if t5 is None else 0)

    def or_zeros(output: tuple[Tensor, Tensor] | None, width: int) -> tuple[Tensor, Tensor]:
        if output is not None:
            return output[0][:, :length], output[1]
        return torch.zeros(batch, length, width, device=device), torch.zeros(batch, width, device=device)

    (l_tokens, l_pooled), (g_tokens, g_pooled) = or_zeros(clip_l, w.clip_l), or_zeros(clip_g, w.clip_g)
    clip = F.pad(torch.cat((l_tokens, g_tokens), dim=-1), (0, w.context - w.pooled))
    parts = [clip] if length else []  # an empty float32 part would promote T5's dtype
    if t5 is not None:
        parts.append(t5)
    return torch.cat(parts, dim=1), torch.cat((l_pooled, g_pooled), dim=-1)


def scale_parts(
    context: Tensor, pooled: Tensor | None, strengths: TextStrengths, *, clip_tokens: int, widths: TextWidths
) -> tuple[Tensor, Tensor | None]:
    """Multiply each encoder's part of context and pooled by its strength.

    Args: context [B, clip_tokens + n, W]; pooled [B, clip_l + clip_g] or None.
    Returns: context and pooled, new tensors unless every strength is 1.
    """
    if strengths == TextStrengths():
        return context, pooled
    context = context.clone()
    clip = context[:, :clip_tokens]
    clip[..., : widths.clip_l] *= strengths.clip_l
    clip[..., widths.clip_l :] *= strengths.clip_g
    context[:, clip_tokens:] *= strengths.t5
    if pooled is not None:
        pooled = pooled.clone()
        pooled[:, : widths.clip_l] *= strengths.clip_l
        pooled[:, widths.clip_l :] *= strengths.clip_g
    return context, pooled


def cut_t5(tokens: list[Any], limit: int) -> tuple[list[Any], list[Any]]:
    """Cut T5's tokens to at most `limit`; the last one, the end token, is kept.

    Args: tokens of one prompt as the tokenizer returns them, padding included; limit >= 1.
    Returns: (tokens kept, tokens cut).
    """
    if len(tokens) <= limit:
        return tokens, []
    return tokens[: limit - 1] + tokens[-1:], tokens[limit - 1 : -1]
