"""Linear multistep methods: Adams-Bashforth with steps of any length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import Method, Step


@dataclass(frozen=True, kw_only=True)
class AdamsBashforth(Method):
    """Integrates the polynomial through the last velocities over the step.

    The first steps of a run have fewer earlier points and a lower order, so that every step is one call; the run is
    then of second order, with an error constant far below AB2's. A step to sigma 0 is an Euler step, as in every
    multistep method here: its result is the model's prediction of the data.
    """

    def advance(self, step: Step) -> Tensor:
        """x at the target: an Euler step plus the weighted differences of the earlier velocities."""
        start, x = step.point, step.euler()
        if step.target == 0:
            return x
        h = step.target - start.sigma
        weights = lagrange_integrals([(point.sigma - start.sigma) / h for point in step.past])
        for weight, point in zip(weights, step.past, strict=True):
            # Differences, so that rounding in the weights of a very uneven grid cannot bend a straight path.
            x = x + (h * weight) * (point.velocity - start.velocity)
        return x


def lagrange_integrals(positions: Sequence[float]) -> list[float]:
    """Weights of an Adams-Bashforth step from 0 to 1 for velocities known at 0 and at `positions`, except that at 0.

    Args: positions in units of the step, distinct, not 0.
    Returns: for each position the integral over [0, 1] of the polynomial that is 1 there and 0 at all others and at 0.
    """
    weights = []
    for index, position in enumerate(positions):
        others = [0.0, *positions[:index], *positions[index + 1 :]]
        polynomial = [1.0]  # lowest power first
        for other in others:
            polynomial = [low - other * same for low, same in zip([0.0, *polynomial], [*polynomial, 0.0], strict=True)]
        integral = sum(value / (power + 1) for power, value in enumerate(polynomial))
        weights.append(integral / math.prod(position - other for other in others))
    return weights
