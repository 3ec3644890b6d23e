"""A method that can go back the way it came, to the last digits: inversion and sampling with one name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Course, History, OwnCourse, Point


@dataclass(frozen=True, kw_only=True)
class AsynchronousLeapfrog(OwnCourse):
    """Carries a velocity of its own beside x, and mirrors it in the one that the model gives half-way through a step.

    With h the step: half = x + h/2 * v, u = velocity(half, middle of the step), v' = 2u - v, x' = half + h/2 * v'.
    The same step with -h leads from (x', v') back to (x, v): nothing but rounding is lost on any grid, for any model.
    So the pair must be handed on: the history is the point at the end, with v as its velocity; a run may continue from
    there or turn back. A run without a history asks the model for its first v: one call more than steps. That v may
    be wrong by a constant times h without loss of the second order.

    What v is wrong by swings from step to step and does not die out, and turning back undoes the swing only in the
    flow that it came from: a run through another flow (another prompt) is better begun without a history.
    """

    carries: bool = True

    def follow(self, course: Course) -> tuple[Tensor, History]:
        x, levels = course.x, course.levels
        v = course.history[-1].velocity if course.history else course.evaluate(x, levels[0])
        for step, (sigma, following) in enumerate(zip(levels, levels[1:], strict=False)):
            start, half_step = Point(sigma, x, v), (following - sigma) / 2
            half = x + half_step * v
            v = 2 * course.evaluate(half, (sigma + following) / 2) - v
            x = (half + half_step * v).to(x.dtype)
            course.report(step, start)
        return x, (Point(levels[-1], x, v),)
