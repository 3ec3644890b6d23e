"""Between two noises: variations of a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """On the great circle from one noise to another, for each sample by itself: what lies between is noise, too.

    A straight line between them would pass through weaker noise.
    Args: start, end [B, ...], one shape, floating point; share in [0, 1], 0 is start and 1 end, exactly.
    Returns: [B, ...], start's dtype.
    Raises: ValueError if the shapes differ or share is out of range.
    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    if start.shape != end.shape:
        raise ValueError(f"slerp: end has shape {list(end.shape)}; expected start's, {list(start.shape)}")
    if not 0 <= share <= 1:
        raise ValueError(f"slerp: share is {share}; it must be in [0, 1]")
    if share in (0, 1):
        return end if share else start
    a, b = (noise.flatten(1).double() for noise in (start, end))
    lengths = a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)
    cosine = torch.where(lengths > 0, (a * b).sum(1, keepdim=True) / lengths, 1.0).clamp(-1, 1)
    angle = cosine.acos()
    # One and the same noise has no arc; opposite ones have no single one. Both are no accident of a random draw.
    straight = angle.sin() < 1e-6
    divisor = torch.where(straight, 1.0, angle.sin())
    weights = [torch.where(straight, part, (part * angle).sin() / divisor) for part in (1 - share, share)]
    return (weights[0] * a + weights[1] * b).reshape(start.shape).to(start.dtype)
