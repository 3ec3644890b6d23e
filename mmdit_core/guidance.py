"""Guidance: combine the predictions for a positive and a negative prompt. Works on velocities and on denoised alike."""

from __future__ import annotations

import math

from torch import Tensor


def cfg(positive: Tensor, negative: Tensor | None, scale: float) -> Tensor:
    """Classifier-free guidance: negative + scale * (positive - negative).

    Args: positive, negative [B, ...], one shape; scale any finite number. At scale 1 the negative plays no part and
        may be None: its model call can be saved.
    Returns: [B, ...]; at scale 1 `positive` itself.
    Raises: ValueError if scale is not finite, the shapes differ, or the negative is missing where it is needed.
    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance".
    """
    if not math.isfinite(scale):
        raise ValueError(f"cfg: scale is {scale}; it must be finite")
    if scale == 1:
        return positive
    if negative is None:
        raise ValueError(f"cfg: scale is {scale} but there is no negative; only scale 1 does without")
    if negative.shape != positive.shape:
        raise ValueError(f"cfg: negative has shape {list(negative.shape)}; expected {list(positive.shape)}")
    return negative + scale * (positive - negative)
