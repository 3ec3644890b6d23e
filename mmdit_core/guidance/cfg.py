"""Guidance: combine the predictions for a positive and a negative prompt.

`cfg` and `rescale` work on velocities and on denoised alike in form; where the kind of prediction matters, it is said.
Every statistic is of one sample, never of the batch: a picture does not depend on those made beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

CURVES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "rising": lambda u: u,
    "falling": lambda u: 1 - u,
    "cosine_rising": lambda u: 0.5 - 0.5 * math.cos(math.pi * u),
    "cosine_falling": lambda u: 0.5 + 0.5 * math.cos(math.pi * u),
}


def cfg(positive: Tensor, negative: Tensor | None, scale: float) -> Tensor:
    """Classifier-free guidance: negative + scale * (positive - negative).

    Args: positive, negative [B, ...], one shape; scale any finite number. At scale 1 the negative plays no part and
        may be None: its model call can be saved.
    Returns: [B, ...]; at scale 1 `positive` itself.
    Raises: ValueError if scale is not finite, the shapes differ, or the negative is missing where it is needed.
    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance".
    """
    if _positive_alone("cfg", positive, negative, scale):
        return positive
    assert negative is not None
    return negative + scale * (positive - negative)


def rescale(guided: Tensor, positive: Tensor, strength: float = 0.7) -> Tensor:
    """Bring a guided prediction's deviation toward the positive's: guidance makes it grow, and pictures overexposed.

    Args: guided, positive [B, ...], one shape, velocities (as the source) or denoised; strength in [0, 1].
    Returns: [B, ...], guided's dtype; at strength 0 `guided` itself. A constant sample stays as it is.
    Raises: ValueError if the shapes differ or strength is out of range.
    Source: Lin et al. 2024, "Common diffusion noise schedules and sample steps are flawed", section 3.4.
    """
    _require_shape("rescale", "guided", guided, positive)
    _require_range("rescale", "strength", strength, 0, 1)
    if strength == 0:
        return guided
    ours, wanted = (_rows(side).std(1, correction=0) for side in (guided, positive))
    ratio = torch.where(ours > 0, wanted / ours, 1.0)
    return (guided * _per_sample(1 - strength + strength * ratio, guided)).to(guided.dtype)


def cfg_zero_star(
    positive: Tensor, negative: Tensor | None, scale: float, *, step: int = 0, zero_steps: int = 0
) -> Tensor:
    """CFG-Zero*: guidance from the negative scaled to lie as near to the positive as it can, and a start at rest.

    negative' = negative * <positive, negative> / |negative|^2; then guidance as ever. In the first `zero_steps` steps
    the velocity is zero, because a model that is not trained to the end points the wrong way there: x stays while
    sigma falls. The authors advise about 4% of the steps, one of 28; the default is none.

    Args: positive, negative [B, ...], one shape, velocities (denoised give another result); scale any finite number;
        step which step of the run this is, from 0; zero_steps >= 0. At scale 1 the negative may be None.
    Returns: [B, ...], positive's dtype; at scale 1 `positive` itself, but zero in the first zero_steps.
    Raises: ValueError as `cfg`; if step or zero_steps is below 0.
    Source: Fan et al. 2025, "CFG-Zero*: improved classifier-free guidance for flow matching models".
    """
    for name, value in (("step", step), ("zero_steps", zero_steps)):
        _require_range("cfg_zero_star", name, value, 0, math.inf)
    alone = _positive_alone("cfg_zero_star", positive, negative, scale)
    if step < zero_steps:
        return torch.zeros_like(positive)
    if alone:
        return positive
    assert negative is not None
    ahead, back = _rows(positive), _rows(negative)
    norm = back.square().sum(1)
    factor = torch.where(norm > 0, (ahead * back).sum(1) / norm, 0.0)
    scaled = negative * _per_sample(factor, negative)
    return (scaled + scale * (positive - scaled)).to(positive.dtype)


def apg(
    positive: Tensor,
    negative: Tensor | None,
    scale: float,
    *,
    eta: float = 0.0,
    norm: float = math.inf,
    momentum: float = 0.0,
    average: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Adaptive projected guidance: leaves out the part of guidance that only makes the prediction stronger.

    The difference positive - negative, with momentum * the last step's average added and its length held below `norm`,
    is split along the positive and across it; positive + (scale - 1) * (across + eta * along).

    Args: positive, negative [B, ...], one shape, denoised (as the source; in velocities the split means another
        thing); scale any finite number; eta in [0, 1], 1 keeps all of the difference (with the rest at its default:
        `cfg`); norm > 0, the longest difference of a sample, L2 over all its elements; momentum in (-1, 1), the source
        finds negative ones best; average: what the last step gave back, None at the first.
    Returns: the guided [B, ...], positive's dtype, and the average for the next step. At scale 1 `positive` itself and
        the average as it came; the negative may then be None.
    Raises: ValueError as `cfg`; if eta, norm or momentum is out of range or the average's shape differs.
    Source: Sadat et al. 2024, "Eliminating oversaturation and artifacts of high guidance scales", algorithm 1.
    """
    _require_range("apg", "eta", eta, 0, 1)
    if not norm > 0:
        raise ValueError(f"apg: norm is {norm}; it must be > 0")
    if not -1 < momentum < 1:
        raise ValueError(f"apg: momentum is {momentum}; it must be between -1 and 1")
    if _positive_alone("apg", positive, negative, scale):
        return positive, average
    assert negative is not None
    difference = positive - negative
    if momentum and average is not None:
        _require_shape("apg", "average", average, positive)
        difference = difference + momentum * average
    kept = difference
    ahead, rows = _rows(positive), _rows(difference)
    if norm < math.inf:
        length = rows.norm(dim=1, keepdim=True)
        rows = rows * torch.where(length > norm, norm / length, 1.0)
    square = ahead.square().sum(1, keepdim=True)
    along = torch.where(square > 0, (rows * ahead).sum(1, keepdim=True) / square, 0.0) * ahead
    update = (rows - (1 - eta) * along).reshape(positive.shape)
    return (positive + (scale - 1) * update).to(positive.dtype), kept


def scale_at(progress: float, scale: float, curve: str = "constant", *, start: float = 0.0, end: float = 1.0) -> float:
    """Guidance scale at a point of the run: 1 + (scale - 1) * curve within [start, end], 1 outside it.

    Args: progress in [0, 1], 0 at the first step; scale the curve's highest; curve a name in CURVES, drawn out between
        start and end; 0 <= start <= end <= 1. Where the result is 1 the negative need not be computed.
    Returns: the scale for `cfg` and its kin.
    Raises: ValueError that names the input, what was found, and what would be right.
    Source: Kynkaanniemi et al. 2024, "Applying guidance in a limited interval"; Wang et al. 2024, "Analysis of
        classifier-free guidance weight schedulers", for the curves.
    """
    if curve not in CURVES:
        raise ValueError(f"scale_at: curve {curve!r} is unknown; choose one of {', '.join(CURVES)}")
    if not math.isfinite(scale):
        raise ValueError(f"scale_at: scale is {scale}; it must be finite")
    _require_range("scale_at", "progress", progress, 0, 1)
    _require_range("scale_at", "start", start, 0, 1)
    _require_range("scale_at", "end", end, start, 1)
    if not start <= progress <= end:
        return 1.0
    width = end - start
    return 1 + (scale - 1) * CURVES[curve]((progress - start) / width if width else 0.0)


def _positive_alone(name: str, positive: Tensor, negative: Tensor | None, scale: float) -> bool:
    if not math.isfinite(scale):
        raise ValueError(f"{name}: scale is {scale}; it must be finite")
    if scale == 1:
        return True
    if negative is None:
        raise ValueError(f"{name}: scale is {scale} but there is no negative; only scale 1 does without")
    _require_shape(name, "negative", negative, positive)
    return False


def _rows(prediction: Tensor) -> Tensor:
    """[B, n], in float32 at least: sums over a picture in half precision would be off, or overflow."""
    return prediction.flatten(1).to(torch.promote_types(prediction.dtype, torch.float32))


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _require_shape(function: str, name: str, given: Tensor, expected: Tensor) -> None:
    if given.shape != expected.shape:
        raise ValueError(f"{function}: {name} has shape {list(given.shape)}; expected {list(expected.shape)}")


def _require_range(function: str, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{function}: {name} is {value}; it must be in [{low:g}, {high:g}]")
