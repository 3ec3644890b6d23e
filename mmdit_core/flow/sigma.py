"""Sigmas: the noise level of a rectified flow, in [0, 1], 1 = noise."""

from __future__ import annotations

from collections.abc import Callable

SIGMA_TOLERANCE = 1e-5  # relative; schedules are float32 in some programs and float64 in others

PercentToSigma = Callable[[float], float]


def same_sigma(a: float, b: float) -> bool:
    """True if two sigmas differ by rounding at most. The one tolerance for sigmas in this package."""
    return abs(a - b) <= SIGMA_TOLERANCE * max(abs(a), abs(b))


def percent_of_sigma(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """Invert a map from percent of the sampling to sigma, by bisection.

    Args: sigma in [0, 1]; percent_to_sigma, non-increasing on [0, 1].
    Returns: the percent in [0, 1], to 1e-12; the nearer end if sigma is out of the map's range.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(percent_to_sigma(middle)) > sigma else (low, middle)
    return (low + high) / 2
