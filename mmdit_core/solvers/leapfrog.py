"""The asynchronous leapfrog: a reversible method, for inversion and sampling."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import History, Integrator, Point, Problem


@dataclass(frozen=True, kw_only=True)
class AsynchronousLeapfrog(Integrator):
    """Integrates x and a velocity v of its own; v is reflected at the model's velocity in the middle of each step.

    With h the step: half = x + h/2 * v, u = velocity(half, middle of the step), v' = 2u - v, x' = half + h/2 * v'.
    A step of -h leads from (x', v') back to (x, v), exact but for rounding, on any grid and for any model. The history
    is therefore the end point with v as its velocity; a run continues from there, or turns back. Without a history the
    first v is the model's velocity, one call more than steps. An error of that v of constant * h keeps the order.

    The error of v oscillates from step to step without decay. Turning back undoes it only along the same flow: a run
    along another flow (another prompt) has a smaller error without a history.
    """

    reversible: bool = True

    def integrate(self, problem: Problem) -> tuple[Tensor, History]:
        """x at the last sigma, and the end point (x, v) as the history."""
        x, sigmas = problem.x, problem.sigmas
        v = problem.history[-1].velocity if problem.history else problem.evaluate(x, sigmas[0])
        for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            start, half_step = Point(sigma, x, v), (following - sigma) / 2
            half = x + half_step * v
            v = 2 * problem.evaluate(half, (sigma + following) / 2) - v
            x = (half + half_step * v).to(x.dtype)
            problem.report(step, start)
        return x, (Point(sigmas[-1], x, v),)
