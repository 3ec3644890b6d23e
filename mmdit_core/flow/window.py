"""A window of the sampling: start, end and fade, and how strongly something acts inside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .sigma import PercentToSigma, percent_of_sigma, same_sigma

# Strength at a position u in [0, 1] of the window.
FADES: dict[str, Callable[[float], float]] = {
    "constant": lambda u: 1.0,
    "in": lambda u: u,
    "out": lambda u: 1.0 - u,
    "cosine": lambda u: 0.5 - 0.5 * math.cos(2 * math.pi * u),
}


class WindowError(ValueError):
    """A field of a window is out of range. Attributes: field, "start", "end" or "fade"; value, as given."""

    def __init__(self, field: str, value: object):
        self.field, self.value = field, value
        right = f"one of {', '.join(FADES)}" if field == "fade" else "in [0, 1]"
        super().__init__(f"window: {field} is {value!r}; it must be {right}")


@dataclass(frozen=True)
class Window:
    """A part of the sampling in percent: 0 is the first step, 1 the end. A model's schedule maps percents to sigmas.

    A window holds its start and not its end, so that consecutive windows never overlap. It is empty if start >= end.
    Fields: start, end in [0, 1]; fade, a name in FADES: constant, growing from 0 (in), falling to 0 (out), or both.
    Raises: WindowError.
    """

    start: float = 0.0
    end: float = 1.0
    fade: str = "constant"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 <= getattr(self, name) <= 1:  # NaN fails too
                raise WindowError(name, getattr(self, name))
        if self.fade not in FADES:
            raise WindowError("fade", self.fade)

    @property
    def is_whole(self) -> bool:
        """True if the strength is 1 in the whole sampling: no sigma is needed to know it."""
        return self.start == 0 and self.end == 1 and self.fade == "constant"

    @property
    def is_empty(self) -> bool:
        """True if no sigma is inside."""
        return self.start >= self.end

    def holds(self, sigma: float, percent_to_sigma: PercentToSigma) -> bool:
        """True if a sigma is inside the window; percent_to_sigma as for `percent_of_sigma`."""
        return self._reached(self.start, sigma, percent_to_sigma) and not (
            self.end < 1 and self._reached(self.end, sigma, percent_to_sigma)
        )

    def strength_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """Strength in [0, 1] at a sigma: 0 outside the window, the fade's value inside."""
        if self.is_empty or not self.holds(sigma, percent_to_sigma):
            return 0.0
        if self.fade == "constant":
            return 1.0
        u = (percent_of_sigma(sigma, percent_to_sigma) - self.start) / (self.end - self.start)
        return FADES[self.fade](min(1.0, max(0.0, u)))

    @staticmethod
    def _reached(percent: float, sigma: float, percent_to_sigma: PercentToSigma) -> bool:
        level = float(percent_to_sigma(percent)) if percent > 0 else math.inf
        return sigma <= level or same_sigma(sigma, level)
