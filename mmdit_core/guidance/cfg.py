"""Guidance: combine the predictions with the prompt (cond) and with the negative prompt (uncond).

`cfg` and `rescale` have the same form for velocities and for denoised; the other functions say which one they take.
Every statistic is of one sample, never of the batch, so that an image does not depend on the rest of its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny  # instead of division by the 0 of a zero vector, whose products are 0

# Guidance at a position u in [0, 1] of its window, as a fraction of scale - 1.
CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "rising": lambda u: u,
    "falling": lambda u: 1 - u,
    "cosine_rising": lambda u: 0.5 - 0.5 * math.cos(math.pi * u),
    "cosine_falling": lambda u: 0.5 + 0.5 * math.cos(math.pi * u),
}


def cfg(cond: Tensor, uncond: Tensor | None, scale: float) -> Tensor:
    """Classifier-free guidance: uncond + scale * (cond - uncond).

    Args: cond, uncond [B, ...], one shape; scale, any finite number. At scale 1 uncond is not used and may be None,
        which saves its model call.
    Returns: [B, ...]; at scale 1 `cond` itself.
    Raises: ValueError if scale is not finite, the shapes differ, or uncond is None at another scale.
    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance".
    """
    uncond = _checked("cfg", cond, uncond, scale)
    return cond if uncond is None else uncond + scale * (cond - uncond)


def rescale(guided: Tensor, cond: Tensor, strength: float = 0.7) -> Tensor:
    """Scale a guided prediction toward cond's standard deviation: guidance raises it, which overexposes images.

    Args: guided, cond [B, ...], one shape, velocities (as in the source) or denoised; strength in [0, 1].
    Returns: [B, ...], guided's dtype; at strength 0 `guided` itself. A constant sample is unchanged.
    Raises: ValueError if the shapes differ or strength is out of range.
    Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", section 3.4.
    """
    _require_shape("rescale", "guided", guided, cond)
    _require_range("rescale", "strength", strength, 0, 1)
    if strength == 0:
        return guided
    deviation, target = (_rows(side).std(1, correction=0) for side in (guided, cond))
    ratio = torch.where(deviation > 0, target / deviation, 1.0)
    return (guided * _per_sample(1 - strength + strength * ratio, guided)).to(guided.dtype)


def cfg_zero_star(cond: Tensor, uncond: Tensor | None, scale: float) -> Tensor:
    """CFG-Zero*: guidance from the multiple of uncond that is nearest to cond.

    uncond' = uncond * <cond, uncond> / |uncond|^2, then `cfg`. The method's zero velocity in the first steps is up to
    the caller.

    Args: cond, uncond [B, ...], one shape, velocities (denoised give another result); scale and None as in `cfg`.
    Returns: [B, ...], cond's dtype; at scale 1 `cond` itself.
    Raises: ValueError as `cfg`.
    Source: Fan et al. 2025, "CFG-Zero*: improved classifier-free guidance for flow matching models".
    """
    uncond = _checked("cfg_zero_star", cond, uncond, scale)
    if uncond is None:
        return cond
    cond_rows, uncond_rows = _rows(cond), _rows(uncond)
    factor = (cond_rows * uncond_rows).sum(1) / uncond_rows.square().sum(1).clamp(min=TINY)
    scaled = uncond * _per_sample(factor, uncond)
    return (scaled + scale * (cond - scaled)).to(cond.dtype)


def apg(cond: Tensor, uncond: Tensor | None, scale: float) -> Tensor:
    """Adaptive projected guidance: cond + (scale - 1) * the part of (cond - uncond) that is orthogonal to cond.

    The parallel part only scales the prediction, which oversaturates images. This is the source's algorithm at eta 0,
    without momentum and without a norm threshold.

    Args: cond, uncond [B, ...], one shape, denoised (in velocities the projection has another meaning); scale and None
        as in `cfg`.
    Returns: [B, ...], cond's dtype; at scale 1 `cond` itself.
    Raises: ValueError as `cfg`.
    Source: Sadat et al. 2024, "Eliminating oversaturation and artifacts of high guidance scales", algorithm 1.
    """
    uncond = _checked("apg", cond, uncond, scale)
    if uncond is None:
        return cond
    cond_rows, difference = _rows(cond), _rows(cond - uncond)
    product, square = ((side * cond_rows).sum(1, keepdim=True) for side in (difference, cond_rows))
    parallel = product / square.clamp(min=TINY) * cond_rows
    return (cond + (scale - 1) * (difference - parallel).reshape(cond.shape)).to(cond.dtype)


def scale_at(progress: float, scale: float, curve: str = "constant", *, start: float = 0.0, end: float = 1.0) -> float:
    """Guidance scale at a point of the run: 1 + (scale - 1) * curve within [start, end], 1 outside it.

    Args: progress in [0, 1], 0 at the first step; scale, the largest; curve, a name in CURVES, which spans the window;
        0 <= start <= end <= 1. If the result is 1, uncond need not be computed.
    Returns: the scale for `cfg`, `cfg_zero_star` or `apg`.
    Raises: ValueError with the argument, what was found, and what is right.
    Source: Kynkaanniemi et al. 2024, "Applying guidance in a limited interval"; Wang et al. 2024, "Analysis of
        classifier-free guidance weight schedulers", for the curves.
    """
    if curve not in CURVES:
        raise ValueError(f"scale_at: curve {curve!r} is unknown; choose one of {', '.join(CURVES)}")
    _require_finite("scale_at", scale)
    _require_range("scale_at", "progress", progress, 0, 1)
    _require_range("scale_at", "start", start, 0, 1)
    _require_range("scale_at", "end", end, start, 1)
    if not start <= progress <= end:
        return 1.0
    width = end - start
    return 1 + (scale - 1) * CURVES[curve]((progress - start) / width if width else 0.0)


def _checked(function: str, cond: Tensor, uncond: Tensor | None, scale: float) -> Tensor | None:
    """uncond, checked; None if the scale is 1, at which it is not used."""
    _require_finite(function, scale)
    if scale == 1:
        return None
    if uncond is None:
        raise ValueError(f"{function}: scale is {scale} and uncond is None; it may be None only at scale 1")
    _require_shape(function, "uncond", uncond, cond)
    return uncond


def _rows(prediction: Tensor) -> Tensor:
    """[B, n], in float32 at least: sums over an image in half precision are inexact, or overflow."""
    return prediction.flatten(1).to(torch.promote_types(prediction.dtype, torch.float32))


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _require_finite(function: str, scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"{function}: scale is {scale}; it must be finite")


def _require_shape(function: str, name: str, given: Tensor, expected: Tensor) -> None:
    if given.shape != expected.shape:
        raise ValueError(f"{function}: {name} has shape {list(given.shape)}; expected {list(expected.shape)}")


def _require_range(function: str, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{function}: {name} is {value}; it must be in [{low:g}, {high:g}]")
