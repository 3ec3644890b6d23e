"""Stochastic methods in rectified flow: steps that take noise away and put fresh noise in, so that x stays
(1 - sigma) * data + sigma * noise. eta says how much of it: 0 is the deterministic method, and draws no noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .base import Method, Option, State
from .exponential import TwoStep

ETA = Option("eta", default=1.0, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(Method):
    """An Euler step to below the target, then up to it with fresh noise.

    At `down` x is (1 - down) * data + down * noise. Times keep = (1 - sigma') / (1 - down) the data's share is right
    and the noise's deviation keep * down; fresh noise of variance sigma'^2 - (keep * down)^2 makes it sigma'.
    """

    options: tuple[Option, ...] = (ETA,)

    def step(self, state: State) -> Tensor:
        start, target, eta = state.point, state.target, state.options["eta"]
        if eta == 0 or target == 0:
            return state.euler()
        down = target * (1 - eta * (1 - target / start.sigma))
        keep = (1 - target) / (1 - down)
        fresh = math.sqrt(max(target**2 - (keep * down) ** 2, 0.0))
        return keep * (start.x + (down - start.sigma) * start.velocity) + fresh * state.noise()


@dataclass(frozen=True, kw_only=True)
class TwoStepSDE(TwoStep):
    """A two-step method for the reverse SDE, in log-SNR time: with h the step in it,

    x' = sigma'/sigma * e^(-eta h) * x + (1 - sigma') * (1 - e^(-(1 + eta) h)) * denoised + the two-step correction
    with weight((1 + eta) h) + sigma' * sqrt(1 - e^(-2 eta h)) * noise.
    From sigma 1, where h is infinite, that is fresh noise on the denoised.
    """

    options: tuple[Option, ...] = (ETA,)

    def step(self, state: State) -> Tensor:
        start, target, eta = state.point, state.target, state.options["eta"]
        if eta == 0 or target == 0:
            return super().step(state)
        h = self.coordinate.log(target) - self.coordinate.log(start.sigma)
        x = (target / start.sigma * math.exp(-eta * h)) * start.x
        x = x + self.coordinate.scale(target) * -math.expm1(-(1 + eta) * h) * start.denoised
        factor = self.correction(state, 1 + eta)
        if factor:
            x = x + factor * (start.denoised - state.past[-1].denoised)
        return x + target * math.sqrt(-math.expm1(-2 * eta * h)) * state.noise()
