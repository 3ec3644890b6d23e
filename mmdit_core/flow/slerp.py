"""Spherical interpolation between two noises, for variations of an image."""

from __future__ import annotations

import torch
from torch import Tensor


def slerp(start: Tensor, end: Tensor, fraction: float) -> Tensor:
    """Spherical interpolation of two noises, for each sample by itself: the result has the distribution of noise.

    Linear interpolation would lower its standard deviation.
    Args: start, end [B, ...], one shape, floating point; fraction in [0, 1], 0 is start and 1 end, exactly.
    Returns: [B, ...], start's dtype.
    Raises: ValueError if the shapes differ or the fraction is out of range.
    Source: Shoemake 1985, "Animating rotation with quaternion curves".
    """
    if start.shape != end.shape:
        raise ValueError(f"slerp: end has shape {list(end.shape)}; expected start's, {list(start.shape)}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"slerp: fraction is {fraction}; it must be in [0, 1]")
    if fraction in (0, 1):
        return end if fraction else start
    a, b = (noise.flatten(1).double() for noise in (start, end))
    lengths = a.norm(dim=1, keepdim=True) * b.norm(dim=1, keepdim=True)
    cosine = torch.where(lengths > 0, (a * b).sum(1, keepdim=True) / lengths, 1.0).clamp(-1, 1)
    angle = cosine.acos()
    # Equal noises have no arc and opposite ones no unique arc: interpolate linearly.
    linear = angle.sin() < 1e-6
    divisor = torch.where(linear, 1.0, angle.sin())
    weights = [torch.where(linear, part, (part * angle).sin() / divisor) for part in (1 - fraction, fraction)]
    return (weights[0] * a + weights[1] * b).reshape(start.shape).to(start.dtype)
