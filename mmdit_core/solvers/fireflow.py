"""FireFlow: the midpoint method at one velocity a step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import History, Integrator, Point, Problem


@dataclass(frozen=True, kw_only=True)
class FireFlow(Integrator):
    """The midpoint method, in which the velocity at the middle of the last step leads to the middle of this one.

    With h the step and u the last step's velocity: half = x + h/2 * u, u' = velocity(half, middle), x' = x + h * u'.
    The first step has no last one: it takes the velocity at its start, one call more than steps. The history is the
    start of the last step with u as its velocity, so that a run in parts is the run in one piece.
    """

    history: int = 1

    def integrate(self, problem: Problem) -> tuple[Tensor, History]:
        """x at the last sigma, and the last step's start with the velocity at its middle as the history."""
        x, sigmas = problem.x, problem.sigmas
        u = problem.history[-1].velocity if problem.history else problem.evaluate(x, sigmas[0])
        start = Point(sigmas[0], x, u)
        for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            h, before = following - sigma, x
            problem.report(step, Point(sigma, x, u))
            u = problem.evaluate(x + h / 2 * u, (sigma + following) / 2)
            x = (x + h * u).to(x.dtype)
            start = Point(sigma, before, u)
        return x, (start,)
