"""Exponential methods: exact for a constant denoised, corrected by how the denoised moves in a logarithmic time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .base import History, Method, Point, State


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """The time that an exponential method is exact in: `log(sigma)` rises from noise to data, maybe through infinities
    at the ends; `sigma(time)` is its inverse; `scale(target)` is what the method's correction is multiplied by.
    """

    log: Callable[[float], float]
    sigma: Callable[[float], float]
    scale: Callable[[float], float]


def _minus_log_sigma(sigma: float) -> float:
    return -math.log(sigma) if sigma > 0 else math.inf


def _log_snr(sigma: float) -> float:
    if sigma >= 1:
        return -math.inf
    return math.log((1 - sigma) / sigma) if sigma > 0 else math.inf


NOISE_TO_ONE = Coordinate(log=_minus_log_sigma, sigma=lambda time: math.exp(-time), scale=lambda target: 1.0)
SIGNAL_TO_NOISE = Coordinate(log=_log_snr, sigma=lambda time: 1 / (1 + math.exp(time)), scale=lambda target: 1 - target)


def phi(order: int, z: float) -> float:
    """phi_0 = exp(z), phi_k = (phi_(k-1) - 1 / (k-1)!) / z: the weights of exponential integrators."""
    if order and abs(z) < 1:  # the recurrence would lose its digits
        return sum(z**n / math.factorial(n + order) for n in range(18))
    value = math.exp(z)
    for k in range(order):
        value = (value - 1 / math.factorial(k)) / z
    return value


def midpoint(h: float) -> float:
    return -math.expm1(-h) / 2


def residual(h: float) -> float:
    return h * phi(2, -h)


@dataclass(frozen=True, kw_only=True)
class TwoStep(Method):
    """Corrects by how the denoised moved in the last step.

    x' = x + (sigma' - sigma) * v + scale(sigma') * weight(h) * h / h_last * (denoised - denoised_last), with h the
    step in the coordinate's time. The correction is zero without a past, where h_last is infinite (the formula's limit)
    and where h is (the usual first-order last step to sigma 0).
    """

    coordinate: Coordinate
    weight: Callable[[float], float]
    order: int = 2
    history: int = 1

    def step(self, state: State) -> Tensor:
        x, factor = state.euler(), self.correction(state)
        return x + factor * (state.point.denoised - state.past[-1].denoised) if factor else x

    def correction(self, state: State, stretch: float = 1.0) -> float:
        """What the change of the denoised is multiplied by; the weight sees the step `stretch` times as long."""
        if not state.past:
            return 0.0
        last, now, then = (self.coordinate.log(s) for s in (state.past[-1].sigma, state.point.sigma, state.target))
        h, h_last = then - now, now - last
        # Two neighbouring sigmas may have one logarithm; a step of no length needs no correction.
        if not math.isfinite(h) or h == 0 or h_last == 0:
            return 0.0
        return self.coordinate.scale(state.target) * self.weight(stretch * h) * h / h_last


@dataclass(frozen=True, kw_only=True)
class TwoStage(Method):
    """Corrects by how the denoised moves on the way: it is asked again at the part `place` of the step.

    x' = x + (sigma' - sigma) * v + scale(sigma') * weight(h) / place * (denoised there - denoised), with h the step in
    the coordinate's time; weight h * phi_2(-h) is RES-2S. Where h is infinite there is no way to stop on: an Euler
    step.
    """

    coordinate: Coordinate
    weight: Callable[[float], float]
    place: float
    order: int = 2

    @property
    def calls_per_step(self) -> int:
        return 2

    def step(self, state: State) -> Tensor:
        start, x = state.point, state.euler()
        now, then = self.coordinate.log(start.sigma), self.coordinate.log(state.target)
        h = then - now
        if not math.isfinite(h) or h == 0:
            return x
        sigma = self.coordinate.sigma(now + self.place * h)
        there = start.x + (sigma - start.sigma) * start.velocity
        between = Point(sigma, there, state.evaluate(there, sigma))
        factor = self.coordinate.scale(state.target) * self.weight(h) / self.place
        return x + factor * (between.denoised - start.denoised)


@dataclass(frozen=True, kw_only=True)
class UniPC(TwoStep):
    """UniPC with B(h) = e^h - 1 ("bh2"): a two-step predictor and, once the denoised at its end is known, a corrector.

    The predictor of order 2 with the paper's simplified weight is DPM++ 2M. The corrector needs no call: the denoised
    stays the one seen at the predicted x, only x moves. From a past of two points on it is of third order.
    """

    history: int = 2

    def correct(self, point: Point, past: History) -> Point:
        if not past:
            return point
        before = past[-1]
        now, start = self.coordinate.log(point.sigma), self.coordinate.log(before.sigma)
        h = now - start
        if h == 0 or h == -math.inf:  # a step of no length, or one up from sigma 0
            return point
        moved = point.denoised - before.denoised
        scale = self.coordinate.scale(point.sigma)
        x = before.x + (point.sigma - before.sigma) * before.velocity
        h_last = start - self.coordinate.log(past[-2].sigma) if len(past) > 1 else 0.0
        if h_last == 0 or h == math.inf:
            x = x + scale * midpoint(h) * moved
        else:
            q = -h / h_last  # 0 where the last step came from pure noise
            weight = (2 * q * phi(3, -h) - phi(2, -h)) / (q - 1)
            weight_last = (phi(2, -h) - 2 * phi(3, -h)) * q**2 / (q - 1)
            x = x + scale * h * (weight * moved + weight_last * (past[-2].denoised - before.denoised))
        return Point(point.sigma, x, (x - point.denoised) / point.sigma)
