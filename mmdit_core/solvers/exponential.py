"""Exponential integrators: exact for a constant denoised, corrected by its change in a logarithmic time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .base import History, Method, Point, Step


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """The logarithmic time lambda of an exponential method.

    Fields: log(sigma) -> lambda, which rises from noise to data and may be infinite at the ends; sigma(lambda), its
    inverse; scale(sigma'), the factor on the method's correction in a step to sigma'.
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


MINUS_LOG_SIGMA = Coordinate(log=_minus_log_sigma, sigma=lambda time: math.exp(-time), scale=lambda target: 1.0)
LOG_SNR = Coordinate(log=_log_snr, sigma=lambda time: 1 / (1 + math.exp(time)), scale=lambda target: 1 - target)


def phi(order: int, z: float) -> float:
    """phi_0 = exp(z), phi_k = (phi_(k-1) - 1 / (k-1)!) / z: the weights of exponential integrators.

    Args: order >= 0; z any finite number. Source: Hochbruck and Ostermann 2010, "Exponential integrators", eq. 2.10.
    """
    if order and abs(z) < 1:  # the recurrence cancels; the series does not
        return sum(z**n / math.factorial(n + order) for n in range(18))
    value = math.exp(z)
    for k in range(order):
        value = (value - 1 / math.factorial(k)) / z
    return value


def midpoint(h: float) -> float:
    """Weight (1 - e^-h) / 2 of DPM-Solver++ 2M."""
    return -math.expm1(-h) / 2


def residual(h: float) -> float:
    """Weight h * phi_2(-h) of RES 2M and RES 2S."""
    return h * phi(2, -h)


@dataclass(frozen=True, kw_only=True)
class TwoStep(Method):
    """A multistep method that corrects by the change of the denoised in the last step.

    x' = x + (sigma' - sigma) * v + scale(sigma') * weight(h) * h / h_last * (denoised - denoised_last), with h the
    step in lambda. The correction is zero without a past, if h_last is infinite (the formula's limit) and if h is
    infinite (the usual first-order last step to sigma 0).
    """

    coordinate: Coordinate
    weight: Callable[[float], float]
    order: int = 2
    history: int = 1

    def advance(self, step: Step) -> Tensor:
        """x at the target: an Euler step and the correction."""
        x, factor = step.euler(), self.correction(step)
        return x + factor * (step.point.denoised - step.past[-1].denoised) if factor else x

    def correction(self, step: Step, stretch: float = 1.0) -> float:
        """The factor on the change of the denoised; the weight's argument is stretch * h."""
        if not step.past:
            return 0.0
        last, now, then = (self.coordinate.log(s) for s in (step.past[-1].sigma, step.point.sigma, step.target))
        h, h_last = then - now, now - last
        # Two neighbouring floats may have the same logarithm; a step of length 0 needs no correction.
        if not math.isfinite(h) or h == 0 or h_last == 0:
            return 0.0
        return self.coordinate.scale(step.target) * self.weight(stretch * h) * h / h_last


@dataclass(frozen=True, kw_only=True)
class TwoStage(Method):
    """A single-step method that corrects by the change of the denoised up to a fraction of the step.

    x' = x + (sigma' - sigma) * v + scale(sigma') * weight(h) / fraction * (denoised at the fraction - denoised), with h
    the step in lambda; weight h * phi_2(-h) is RES-2S. If h is infinite no fraction of it exists: an Euler step.
    """

    coordinate: Coordinate
    weight: Callable[[float], float]
    fraction: float
    order: int = 2

    @property
    def calls_per_step(self) -> int:
        """Velocity evaluations in one step: at its start and at the fraction."""
        return 2

    def advance(self, step: Step) -> Tensor:
        """x at the target: an Euler step and the correction."""
        start, x = step.point, step.euler()
        now, then = self.coordinate.log(start.sigma), self.coordinate.log(step.target)
        h = then - now
        if not math.isfinite(h) or h == 0:
            return x
        sigma = self.coordinate.sigma(now + self.fraction * h)
        between_x = start.x + (sigma - start.sigma) * start.velocity
        between = Point(sigma, between_x, step.evaluate(between_x, sigma))
        factor = self.coordinate.scale(step.target) * self.weight(h) / self.fraction
        return x + factor * (between.denoised - start.denoised)


@dataclass(frozen=True, kw_only=True)
class UniPC(TwoStep):
    """UniPC with B(h) = e^h - 1 ("bh2"): a two-step predictor, and a corrector once the denoised at its end is known.

    The predictor of order 2 with the paper's simplified weight is DPM++ 2M. The corrector needs no call: the denoised
    stays the one predicted at the uncorrected x; only x changes. With a past of two points it is of third order.
    """

    history: int = 2

    def correct(self, point: Point, past: History) -> Point:
        """The point with x corrected and the same denoised."""
        if not past:
            return point
        before = past[-1]
        now, start = self.coordinate.log(point.sigma), self.coordinate.log(before.sigma)
        h = now - start
        if h == 0 or h == -math.inf:  # a step of length 0, or one that rises from sigma 0
            return point
        change = point.denoised - before.denoised
        scale = self.coordinate.scale(point.sigma)
        x = before.x + (point.sigma - before.sigma) * before.velocity
        h_last = start - self.coordinate.log(past[-2].sigma) if len(past) > 1 else 0.0
        if h_last == 0 or h == math.inf:
            x = x + scale * midpoint(h) * change
        else:
            q = -h / h_last  # 0 if the last step began at sigma 1
            weight = (2 * q * phi(3, -h) - phi(2, -h)) / (q - 1)
            weight_last = (phi(2, -h) - 2 * phi(3, -h)) * q**2 / (q - 1)
            x = x + scale * h * (weight * change + weight_last * (past[-2].denoised - before.denoised))
        return Point(point.sigma, x, (x - point.denoised) / point.sigma)
