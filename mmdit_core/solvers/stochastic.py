"""Stochastic methods in rectified flow: a step removes noise and adds new noise.

The distribution of x stays (1 - sigma) * data + sigma * noise. The option eta is the amount of new noise; eta 0 is the
deterministic method and draws none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .base import Method, Option, Step
from .exponential import TwoStep

ETA = Option("eta", default=1.0, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(Method):
    """An Euler step to a sigma `down` below the target, then noise up to the target.

    At `down` x is (1 - down) * data + down * noise. Multiplied by keep = (1 - sigma') / (1 - down) the data has the
    target's factor and the noise has standard deviation keep * down; new noise of variance sigma'^2 - (keep * down)^2
    raises it to sigma'.
    """

    options: tuple[Option, ...] = (ETA,)

    def advance(self, step: Step) -> Tensor:
        """x at the target; an Euler step at eta 0 and to sigma 0."""
        start, target, eta = step.point, step.target, step.options["eta"]
        if eta == 0 or target == 0:
            return step.euler()
        down = target * (1 - eta * (1 - target / start.sigma))
        keep = (1 - target) / (1 - down)
        added = math.sqrt(max(target**2 - (keep * down) ** 2, 0.0))
        return keep * (start.x + (down - start.sigma) * start.velocity) + added * step.noise()


@dataclass(frozen=True, kw_only=True)
class TwoStepSDE(TwoStep):
    """A two-step method for the reverse SDE, in log-SNR.

    With h the step in log-SNR:
    x' = sigma'/sigma * e^(-eta h) * x + (1 - sigma') * (1 - e^(-(1 + eta) h)) * denoised + the two-step correction
    with weight((1 + eta) h) + sigma' * sqrt(1 - e^(-2 eta h)) * noise.
    From sigma 1, where h is infinite, x' is new noise added to the denoised.
    """

    options: tuple[Option, ...] = (ETA,)

    def advance(self, step: Step) -> Tensor:
        """x at the target; the deterministic two-step method at eta 0 and to sigma 0."""
        start, target, eta = step.point, step.target, step.options["eta"]
        if eta == 0 or target == 0:
            return super().advance(step)
        h = self.coordinate.log(target) - self.coordinate.log(start.sigma)
        x = (target / start.sigma * math.exp(-eta * h)) * start.x
        x = x + self.coordinate.scale(target) * -math.expm1(-(1 + eta) * h) * start.denoised
        factor = self.correction(step, 1 + eta)
        if factor:
            x = x + factor * (start.denoised - step.past[-1].denoised)
        return x + target * math.sqrt(-math.expm1(-2 * eta * h)) * step.noise()
