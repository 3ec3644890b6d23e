"""Windows in percent of the sampling, as the host's `percent_to_sigma` reads them: 0 is the start, 1 the end.

A window holds its start and not its end, so that windows that follow each other never act together.
"""

from __future__ import annotations

from collections.abc import Callable

ToSigma = Callable[[float], float]

SLACK = 1 + 1e-5  # sigmas are float32, percents are not


def holds(sigma: float, start: float, end: float, to_sigma: ToSigma) -> bool:
    """Whether a noise level lies in the window from `start` to `end` percent."""
    begun = start <= 0 or sigma <= float(to_sigma(start)) * SLACK
    ended = end < 1 and sigma <= float(to_sigma(end)) * SLACK
    return begun and not ended


def percent_at(sigma: float, to_sigma: ToSigma) -> float:
    """The percent that `percent_to_sigma` turns into this sigma: it only ever falls, so halving finds it."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float(to_sigma(middle)) > sigma else (low, middle)
    return (low + high) / 2
