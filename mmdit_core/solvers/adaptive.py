"""Embedded Runge-Kutta pairs: adaptive steps that hold the estimated error below a tolerance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..flow.sigma import LOWEST_SIGMA
from .base import Evaluate, History, Integrator, Option, Point, Problem
from .runge_kutta import weighted_sum

# The usual step size controller (Hairer, Norsett and Wanner 1993, section II.4). GROW is lower than usual: at
# tolerances fit for images a step five times longer exceeds the range of its own error estimate.
FIRST_STEP, SAFETY, SHRINK, GROW = 0.05, 0.9, 0.2, 3.0

TOLERANCE = Option("tolerance", default=1e-3, low=1e-8, high=1.0)
MAX_CALLS = Option("max_calls", default=1000, low=8, high=100_000)


class CallLimitError(ValueError):
    """An adaptive run needs more velocity evaluations than max_calls.

    Attributes: calls made; start, sigma, end: where the run began, where it is, where it ends; max_calls; tolerance.
    """

    def __init__(self, calls: int, start: float, sigma: float, end: float, *, max_calls: float, tolerance: float):
        self.calls, self.start, self.sigma, self.end = calls, start, sigma, end
        self.max_calls, self.tolerance = max_calls, tolerance
        super().__init__(
            f"solve: {calls} model calls lead from sigma {start:g} to {sigma:g} and not to {end:g}; "
            f"max_calls is {max_calls:g} and tolerance {tolerance:g}: raise one"
        )


@dataclass(frozen=True, kw_only=True)
class EmbeddedPair(Integrator):
    """Two Runge-Kutta methods in one tableau; their difference is the error estimate, which sets the next step.

    Fields: fractions of the step at which the stages after the first are evaluated; stages, the tableau's rows; the
    last stage is at the step's end and is the result, so that its velocity is the next step's first; errors, the
    result's weights less the embedded method's, one per velocity.
    Of the sigmas only the first and the last are used. The error is held below tolerance * (1 + |x|), root mean square
    over each sample, the largest of the batch. Each step waits for the device to read it. A run to sigma 0 ends with an
    Euler step from LOWEST_SIGMA.
    """

    fractions: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    errors: tuple[float, ...]
    adaptive: bool = True
    options: tuple[Option, ...] = (TOLERANCE, MAX_CALLS)

    @property
    def calls_per_step(self) -> int:
        """Velocity evaluations in one attempted step."""
        return len(self.stages)

    def integrate(self, problem: Problem) -> tuple[Tensor, History]:
        """x at the last sigma; the history is empty. Raises: CallLimitError; ValueError if a velocity is not finite."""
        sigmas, evaluate, options = problem.sigmas, problem.evaluate, problem.options
        begin, end = sigmas[0], sigmas[-1]
        stop = end if end > 0 else min(LOWEST_SIGMA, begin)
        rising = end > begin

        def report(point: Point) -> None:
            passed = [sigma <= point.sigma if rising else sigma >= point.sigma for sigma in sigmas[1:-1]]
            problem.report(sum(passed), point)

        point, calls = Point(begin, problem.x, evaluate(problem.x, begin)), 1
        h = FIRST_STEP * (stop - begin)
        while point.sigma != stop:
            if calls + self.calls_per_step > options["max_calls"]:
                raise CallLimitError(calls, begin, point.sigma, end, **options)
            if abs(h) >= abs(stop - point.sigma):
                h = stop - point.sigma
            following, error = self._attempt(point, h, stop, evaluate, options["tolerance"])
            calls += self.calls_per_step
            if error != error:
                raise ValueError(f"solve: the velocity is not finite in a step from sigma {point.sigma:g}")
            if error <= 1:
                report(point)
                point = following
            h *= min(GROW, max(SHRINK, SAFETY * error ** (-1 / self.order))) if error else GROW
        if stop == end:
            return point.x, ()
        report(point)
        return point.x + (end - stop) * point.velocity, ()

    def _attempt(
        self, start: Point, h: float, stop: float, evaluate: Evaluate, tolerance: float
    ) -> tuple[Point, float]:
        """The end point of a step of h, and its error as a multiple of the largest allowed one."""
        is_last = h == stop - start.sigma
        velocities, x, sigma = [start.velocity], start.x, start.sigma
        for fraction, row in zip(self.fractions, self.stages, strict=True):
            sigma = stop if is_last and fraction == 1 else start.sigma + fraction * h
            x = (start.x + weighted_sum(velocities, row, h)).to(start.x.dtype)
            velocities.append(evaluate(x, sigma))
        allowed = tolerance * (1 + start.x.abs().maximum(x.abs()))
        ratio = (weighted_sum(velocities, self.errors, h) / allowed).reshape(len(x), -1).float()
        return Point(sigma, x, velocities[-1]), ratio.square().mean(1).sqrt().max().item()
