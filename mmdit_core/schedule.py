"""Sigma schedules for rectified flow, and the shifts that warp them.

A schedule is a function (steps, shift, **options) -> [steps + 1] from 1 to 0; SCHEDULES names them.
Schedules are made in float64 on the CPU: they are read once, and a solver's order shows only in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Level = TypeVar("Level", Tensor, float)

TRAIN_STEPS = 1000  # timesteps the SD3 family was trained at; its own grid ends at the lowest of them
MIN_DENOISE = 1e-4  # keeps steps / denoise, the length of the whole schedule, within reason
FULL_DENOISE = 0.9999  # the host's threshold: above it a run is a full one


def shift_sigma(sigma: Level, shift: float) -> Level:
    """Warp noise levels toward high noise (shift > 1) or low noise (shift < 1).

    Args: sigma a number or tensor [n] in [0, 1]; shift > 0, dimensionless.
    Returns: as sigma, same dtype and device; 0 and 1 stay exactly, monotone. Two shifts multiply.
    Raises: ValueError if shift is not finite and > 0.
    Source: Esser et al. 2024, eq. 23, written so that 1 maps to exactly 1 in floating point.
    """
    _require_shift(shift)
    return shift * sigma / (shift * sigma + (1 - sigma))


def unshift_sigma(sigma: Level, shift: float) -> Level:
    """Inverse of `shift_sigma`.

    Args: sigma a number or tensor [n] in [0, 1]; shift > 0, the one that was applied.
    Returns: as sigma, same dtype and device.
    Raises: ValueError if shift is not finite and > 0.
    """
    _require_shift(shift)
    return sigma / (sigma + shift * (1 - sigma))


def resolution_shift(pixels: int, base_pixels: int = 1024 * 1024) -> float:
    """Shift that gives a picture of one size the noise level that another size has: sqrt(pixels / base_pixels).

    Args: pixels, base_pixels width * height, > 0. Multiply the result by the shift in use at the base size.
    Returns: the shift, > 0.
    Raises: ValueError if a count is not > 0.
    Source: Esser et al. 2024, section 5.3.2.
    """
    for name, count in (("pixels", pixels), ("base_pixels", base_pixels)):
        if not 0 < count < math.inf:
            raise ValueError(f"resolution_shift: {name} is {count}; it must be > 0")
    return math.sqrt(pixels / base_pixels)


def flux_mu(tokens: int) -> float:
    """FLUX's shift parameter for a picture's size: linear through (256 tokens, 0.5) and (4096 tokens, 1.15).

    Args: tokens > 0, image tokens (for a patch of 2 and a VAE of 8: width / 16 * height / 16).
    Returns: mu; `mu_to_shift` makes it a shift.
    Raises: ValueError if tokens is not > 0.
    Source: Black Forest Labs, FLUX.1 reference sampling.
    """
    if not 0 < tokens < math.inf:
        raise ValueError(f"flux_mu: tokens is {tokens}; it must be > 0")
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)


def mu_to_shift(mu: float) -> float:
    """Shift of FLUX's form e^mu / (e^mu + 1/sigma - 1), which is `shift_sigma` with shift e^mu.

    Args: mu any real number. Returns: the shift, > 0.
    """
    return math.exp(mu)


def linear(steps: int, shift: float) -> Tensor:
    """Even steps, shifted: shift(1 - i / steps). With shift e^mu this is FLUX's own grid.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    """
    return shift_sigma(1 - torch.arange(steps + 1, dtype=torch.float64) / steps, shift)


def sd3(steps: int, shift: float) -> Tensor:
    """The grid that SD3 shipped with: even steps down to the lowest trained level, then 0.

    That lowest level is itself already shifted, so the tail is shifted twice: part of the recipe, kept as it is.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    Source: Stability's SD3 reference code; diffusers' flow matching scheduler; the host's "normal".
    """
    lowest = shift_sigma(1 / TRAIN_STEPS, shift)
    grid = torch.linspace(1.0, lowest, steps, dtype=torch.float64)
    return torch.cat([shift_sigma(grid, shift), grid.new_zeros(1)])


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "sd3": sd3,
}


def sigmas(
    steps: int, schedule: str = "linear", shift: float = 3.0, *, denoise: float = 1.0, **options: float
) -> Tensor:
    """Noise levels to sample at.

    Args: steps >= 1; schedule a name in SCHEDULES; shift > 0; denoise in [1e-4, 1], below 1 for image to image:
        the last `steps` steps of a schedule of int(steps / denoise), as the host does; options are the schedule's own.
    Returns: [steps + 1], float64 on the CPU, from 1 (lower when denoise < 1) to 0.
    Raises: ValueError that names the input, what was found, and what would be right.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"sigmas: steps is {steps!r}; it must be a whole number >= 1")
    if schedule not in SCHEDULES:
        raise ValueError(f"sigmas: schedule {schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    _require_shift(shift)
    if not MIN_DENOISE <= denoise <= 1:
        raise ValueError(f"sigmas: denoise is {denoise}; it must be in [{MIN_DENOISE}, 1]")
    total = steps if denoise > FULL_DENOISE else int(steps / denoise)
    return SCHEDULES[schedule](total, shift, **options)[-(steps + 1) :]


def _require_shift(shift: float) -> None:
    if not 0 < shift < math.inf:
        raise ValueError(f"shift is {shift}; it must be finite and > 0")
