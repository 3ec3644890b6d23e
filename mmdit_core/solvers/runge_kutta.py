"""Runge-Kutta methods in sigma, from their tableaux: with fixed steps, and with steps that follow a tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .base import Course, Evaluate, History, Method, Option, OwnCourse, Point, State

# Adaptive methods look at the end of each step, and no network is trained below this level, the SD3 family's lowest.
LOWEST = 1e-3

# The usual controller (Hairer, Norsett and Wanner 1993, section II.4): aim below the tolerance, change steps gently.
# GROW is lower than usual: at tolerances fit for pictures a step five times longer outruns its own error estimate.
FIRST_STEP, SAFETY, SHRINK, GROW = 0.05, 0.9, 0.2, 3.0

TOLERANCE = Option("tolerance", default=1e-3, low=1e-8, high=1.0)
MAX_CALLS = Option("max_calls", default=1000, low=8, high=100_000)


class UnreachedError(ValueError):
    """An adaptive run would take more model calls than it may."""


@dataclass(frozen=True, kw_only=True)
class RungeKutta(Method):
    """Explicit Runge-Kutta method from its tableau.

    stages: the tableau's rows after the first, one number per slope known by then (their sum is the stage's place in
    the step); weights: one per slope. Where the tableau looks at the end of a step and that end is sigma 0, the step
    is an Euler step: networks are not trained at sigma 0, and denoised-based models divide by it.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    @property
    def calls_per_step(self) -> int:
        return len(self.weights)

    def step(self, state: State) -> Tensor:
        start, target = state.point, state.target
        h = target - start.sigma
        slopes = [start.velocity]
        if target == 0 and any(sum(row) == 1 for row in self.stages):
            return state.euler()
        for row in self.stages:
            place = sum(row)
            # Adding h may miss the target by a rounding, and a network sees that as another timestep.
            sigma = target if place == 1 else start.sigma + place * h
            slopes.append(state.evaluate(start.x + _weighted(slopes, row, h), sigma))
        return start.x + _weighted(slopes, self.weights, h)


@dataclass(frozen=True, kw_only=True)
class EmbeddedPair(OwnCourse):
    """Two Runge-Kutta methods in one tableau: their difference estimates the error, and chooses the next step.

    places, stages: the tableau after its first row; the last row's stage is at the step's end and is the result, so
    its slope is the next step's first; errors: the result's weights less the embedded method's, one per slope.
    Of the schedule it takes the two ends alone. The error is held below tolerance * (1 + |x|), root mean square over
    each sample, the worst of the batch deciding. That decision waits for the device. A run to sigma 0 ends with a
    straight line from LOWEST.
    """

    places: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    errors: tuple[float, ...]
    options: tuple[Option, ...] = (TOLERANCE, MAX_CALLS)

    @property
    def calls_per_step(self) -> int:
        return len(self.stages)

    def follow(self, course: Course) -> tuple[Tensor, History]:
        x, levels, evaluate, options = course.x, course.levels, course.evaluate, course.options
        end = levels[-1]
        stop = end if end > 0 else min(LOWEST, levels[0])
        behind = _counter(levels)
        point, calls = Point(levels[0], x, evaluate(x, levels[0])), 1
        h = FIRST_STEP * (stop - point.sigma)
        while point.sigma != stop:
            if calls + self.calls_per_step > options["max_calls"]:
                raise UnreachedError(
                    f"solve: {calls} model calls led from sigma {levels[0]:g} to {point.sigma:g}, and {end:g} is not "
                    f"reached; max_calls is {options['max_calls']:g} and tolerance {options['tolerance']:g}: raise one"
                )
            if abs(h) >= abs(stop - point.sigma):
                h = stop - point.sigma
            following, error = self._attempt(point, h, stop, evaluate, options["tolerance"])
            calls += self.calls_per_step
            if error != error:
                raise ValueError(f"solve: the velocity is not finite in a step from sigma {point.sigma:g}")
            if error <= 1:
                course.report(behind(point.sigma), point)
                point = following
            h *= min(GROW, max(SHRINK, SAFETY * error ** (-1 / self.order))) if error else GROW
        if stop == end:
            return point.x, ()
        course.report(behind(point.sigma), point)
        return point.x + (end - stop) * point.velocity, ()

    def _attempt(
        self, start: Point, h: float, stop: float, evaluate: Evaluate, tolerance: float
    ) -> tuple[Point, float]:
        """Where a step of h leads, and its error in units of what is allowed."""
        last = h == stop - start.sigma
        slopes, x, sigma = [start.velocity], start.x, start.sigma
        for place, row in zip(self.places, self.stages, strict=True):
            sigma = stop if last and place == 1 else start.sigma + place * h
            x = (start.x + _weighted(slopes, row, h)).to(start.x.dtype)
            slopes.append(evaluate(x, sigma))
        allowed = tolerance * (1 + start.x.abs().maximum(x.abs()))
        ratio = (_weighted(slopes, self.errors, h) / allowed).reshape(len(x), -1).float()
        return Point(sigma, x, slopes[-1]), ratio.square().mean(1).sqrt().max().item()


def _counter(levels: Sequence[float]) -> Callable[[float], int]:
    direction = 1 if levels[-1] > levels[0] else -1
    return lambda sigma: sum((sigma - level) * direction >= 0 for level in levels[1:-1])


def _weighted(slopes: Sequence[Tensor], weights: Sequence[float], h: float) -> Tensor:
    """h times the weighted sum of slopes; zero weights cost nothing."""
    terms = [(h * weight) * slope for slope, weight in zip(slopes, weights, strict=True) if weight]
    return sum(terms[1:], terms[0])
