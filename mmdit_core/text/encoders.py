"""Three text encoders' outputs -> what an MMDiT reads: a sequence of tokens (context) and one vector (pooled).

The sequence is [CLIP | T5]: CLIP-L and CLIP-G side by side on the channels, padded with zeros to the model's width,
then T5's tokens. The vector is CLIP-L's pooled output followed by CLIP-G's. Any encoder may be missing.
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
    """Channels of each encoder and of the context that the model reads; the defaults are SD3's."""

    clip_l: int = 768
    clip_g: int = 1280
    context: int = 4096

    def __post_init__(self) -> None:
        if self.clip_l + self.clip_g > self.context:
            raise ValueError(
                f"TextWidths: CLIP-L {self.clip_l} and CLIP-G {self.clip_g} side by side do not fit "
                f"into a context of {self.context} channels"
            )

    @property
    def pooled(self) -> int:
        return self.clip_l + self.clip_g


@dataclass(frozen=True)
class TextStrengths:
    """Factors on each encoder's part; 1 leaves it, 0 drops it as a dropped encoder was in training (zeros)."""

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
    """Join what the encoders gave.

    Args: clip_l and clip_g, (tokens [B, L, W], pooled [B, W]) each; where both are given the longer is cut to the
        shorter; t5 tokens [B, n, context]; None for an encoder that is missing: zeros of its width on the channels
        and in the vector, and no tokens for T5. device of the zeros where nothing is given.
    Returns: context [B, L + n, context], pooled [B, clip_l + clip_g].
    Raises: ValueError when T5's width is not the context's.
    Source: Esser et al. 2024, figure 2a.
    """
    w = widths or TextWidths()
    given = [tensor for tensor in (*(clip_l or ()), *(clip_g or ()), t5) if tensor is not None]
    batch, device = (given[0].shape[0], given[0].device) if given else (1, device)

    def pooled_or_zeros(part: tuple[Tensor, Tensor] | None, width: int) -> Tensor:
        return torch.zeros(batch, width, device=device) if part is None else part[1]

    pooled = torch.cat((pooled_or_zeros(clip_l, w.clip_l), pooled_or_zeros(clip_g, w.clip_g)), dim=-1)
    parts = []
    if clip_l is not None or clip_g is not None:
        length = min(part[0].shape[1] for part in (clip_l, clip_g) if part is not None)
        left = clip_l[0][:, :length] if clip_l is not None else torch.zeros(batch, length, w.clip_l, device=device)
        right = clip_g[0][:, :length] if clip_g is not None else torch.zeros(batch, length, w.clip_g, device=device)
        clip = torch.cat((left, right), dim=-1)
        parts.append(F.pad(clip, (0, w.context - clip.shape[-1])))
    if t5 is not None:
        if t5.shape[-1] != w.context:
            raise ValueError(f"assemble: T5's tokens are {list(t5.shape)}; the context takes [B, n, {w.context}]")
        parts.append(t5)
    if not parts:
        parts.append(torch.zeros(batch, CLIP_TOKENS, w.context, device=device))
    return torch.cat(parts, dim=1), pooled


def scale_parts(
    context: Tensor, pooled: Tensor | None, strengths: TextStrengths, *, clip_tokens: int, widths: TextWidths
) -> tuple[Tensor, Tensor | None]:
    """Multiply each encoder's part of an assembled text by its strength.

    Args: context [B, clip_tokens + n, W]; pooled [B, clip_l + clip_g] or None. Returns: new tensors, or the ones
        given where every strength is 1.
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
    """Keep at most `limit` of T5's tokens, the last of them the end token that the tokenizer put last.

    Args: tokens, one prompt's tokens as the tokenizer gave them, padding included; limit >= 1.
    Returns: (tokens kept, tokens cut).
    """
    if len(tokens) <= limit:
        return tokens, []
    return tokens[: limit - 1] + tokens[-1:], tokens[limit - 1 : -1]
