"""Methods that look back at earlier velocities: Adams-Bashforth with steps of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import Method, State


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(Method):
    """Integrates the polynomial through the last velocities over the step.

    The first steps of a run, for want of a past, are of lower order, so that every step is one call; a run that begins
    there is of second order, with an error constant far below AB2's. A step to sigma 0 is a straight line, as for
    every multistep method here: it lands on what the model says the data is.
    """

    def step(self, state: State) -> Tensor:
        start, x = state.point, state.euler()
        if state.target == 0:
            return x
        h = state.target - start.sigma
        weights = lagrange_integrals([(point.sigma - start.sigma) / h for point in state.past])
        for weight, point in zip(weights, state.past, strict=True):
            # Differences, so that rounding in the weights of a very uneven grid cannot bend a straight path.
            x = x + (h * weight) * (point.velocity - start.velocity)
        return x


def lagrange_integrals(places: Sequence[float]) -> list[float]:
    """Weights of an Adams-Bashforth step from 0 to 1, for slopes known at 0 and at `places`; that at 0 is left out.

    Args: places: distinct, not 0. Returns: for each, the integral over [0, 1] of the polynomial that is 1 there and
        0 at 0 and at the other places.
    """
    weights = []
    for index, place in enumerate(places):
        others = [0.0, *places[:index], *places[index + 1 :]]
        polynomial = [1.0]  # lowest power first
        for other in others:
            polynomial = [low - other * same for low, same in zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)]
        integral = sum(value / (power + 1) for power, value in enumerate(polynomial))
        weights.append(integral / math.prod(place - other for other in others))
    return weights
