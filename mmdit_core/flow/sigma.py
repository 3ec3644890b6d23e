"""The noise level sigma, 0 = data, 1 = noise: its shift, percent of the sampling, the tolerance for equal sigmas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Sigma = TypeVar("Sigma", Tensor, float)
PercentToSigma = Callable[[float], float]  # falls on [0, 1]; 0 = the start of the sampling

TRAIN_STEPS = 1000  # timesteps that the SD3 family is trained at; timestep = 1000 * sigma
LOWEST_SIGMA = 1 / TRAIN_STEPS  # no network of the family is trained below it, except at 0

# The one tolerance for equal sigmas, relative. Schedules are float64, other programs' and a model's sigmas are float32,
# with a rounding of 6e-8; the steps of a schedule of 1000 steps are 1e-3 apart.
SIGMA_TOLERANCE = 1e-5


def same_sigma(a: float, b: float) -> bool:
    """True if two sigmas are equal but for rounding.

    Args: a, b in [0, 1]. Returns: whether they differ by at most SIGMA_TOLERANCE times the larger one.
    """
    return math.isclose(a, b, rel_tol=SIGMA_TOLERANCE)


def percent_of_sigma(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """Inverse of a model's `percent_to_sigma`, by bisection.

    Args: sigma in [0, 1]; percent_to_sigma, falling on [0, 1].
    Returns: the percent in [0, 1], to 1e-12; 0 above the function's range, 1 below it.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(percent_to_sigma(middle)) > sigma else (low, middle)
    return (low + high) / 2


def shift_sigma(sigma: Sigma, shift: float) -> Sigma:
    """Shift sigmas toward high noise (shift > 1) or low noise (shift < 1).

    Args: sigma a number or a tensor [n], in [0, 1]; shift > 0.
    Returns: as sigma, same dtype and device; 0 and 1 are fixed points; monotone. Two shifts multiply:
        the inverse is a shift of 1 / shift.
    Raises: ValueError if shift is not finite and > 0.
    Source: Esser et al. 2024, eq. 23, in a form that maps 1 to exactly 1 in floating point.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"shift is {shift}; it must be finite and > 0")
    return shift * sigma / (shift * sigma + (1 - sigma))


def resolution_shift(pixels: int) -> float:
    """Shift from 1024 x 1024 pixels to another size, so that both have the same signal-to-noise: the root of the ratio.

    Args: pixels: width * height, > 0. Multiply the result by the shift of 1024 x 1024.
    Returns: the shift, > 0.
    Raises: ValueError if pixels is not > 0.
    Source: Esser et al. 2024, section 5.3.2.
    """
    if not 0 < pixels < math.inf:
        raise ValueError(f"resolution_shift: pixels is {pixels}; it must be > 0")
    return math.sqrt(pixels / (1024 * 1024))


def flux_mu(tokens: int) -> float:
    """FLUX's shift parameter mu of an image size: linear through (256 tokens, 0.5) and (4096 tokens, 1.15).

    Args: tokens > 0, image tokens (width / 16 * height / 16 for a patch of 2 and a VAE of 8).
    Returns: mu; `mu_to_shift` turns it into a shift.
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
