"""Explicit Runge-Kutta methods in sigma with fixed steps, from their tableaux."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import Method, Step


@dataclass(frozen=True, kw_only=True)
class RungeKutta(Method):
    """Explicit Runge-Kutta method from its Butcher tableau.

    Fields: stages, the tableau's rows after the first, one number per velocity known by then (their sum is the
    fraction of the step at which the stage is evaluated); weights, one per velocity. If a stage is evaluated at the
    step's end and that end is sigma 0, the step is an Euler step: networks are not trained at sigma 0, and models that
    predict the denoised divide by it.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @property
    def calls_per_step(self) -> int:
        """Velocity evaluations in one step: the number of stages, the start included."""
        return len(self.weights)

    def advance(self, step: Step) -> Tensor:
        """x at the target: the weighted sum of the stages' velocities."""
        start, target = step.point, step.target
        h = target - start.sigma
        velocities = [start.velocity]
        if target == 0 and any(sum(row) == 1 for row in self.stages):
            return step.euler()
        for row in self.stages:
            fraction = sum(row)
            # Adding h may miss the target by a rounding, which is another timestep to a network.
            sigma = target if fraction == 1 else start.sigma + fraction * h
            velocities.append(step.evaluate(start.x + weighted_sum(velocities, row, h), sigma))
        return start.x + weighted_sum(velocities, self.weights, h)


def weighted_sum(velocities: Sequence[Tensor], weights: Sequence[float], h: float) -> Tensor:
    """h times the weighted sum of velocities [B, ...]; terms with weight 0 are not computed."""
    terms = [(h * weight) * velocity for velocity, weight in zip(velocities, weights, strict=True) if weight]
    return sum(terms[1:], terms[0])
