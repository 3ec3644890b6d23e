"""What every solver is made of: places on a trajectory, what a step may look at, and what a method says of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Evaluate = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Point:
    """A place on the trajectory: x [B, ...] at noise level sigma and the velocity there."""

    sigma: float
    x: Tensor
    velocity: Tensor

    @property
    def denoised(self) -> Tensor:
        return self.x - self.sigma * self.velocity


History = tuple[Point, ...]


@dataclass(frozen=True)
class Option:
    """A number that a method takes besides the schedule: its default, and the range in which it makes sense."""

    name: str
    default: float
    low: float
    high: float


@dataclass(frozen=True)
class State:
    """All that a step may look at.

    point: where the step starts; target: the sigma where it ends; past: earlier starting points, newest last, at most
    as many as the method's `history`; evaluate(x, sigma): one more call of the velocity; noise(): fresh standard
    normal noise of x's shape; options: a value for each of the method's options.
    """

    point: Point
    target: float
    past: History
    evaluate: Evaluate
    noise: Callable[[], Tensor]
    options: Mapping[str, float]

    def euler(self) -> Tensor:
        """x at the target along a straight line: exact where the denoised does not change."""
        return self.point.x + (self.target - self.point.sigma) * self.point.velocity


@dataclass(frozen=True, kw_only=True)
class Method:
    """A solver: numbers and a source. It keeps nothing between steps, `State.past` does.

    order: of the error over a whole run, once `history` points are known; history: how many earlier points a step
    looks at; carries: whether a run hands on the point at its end instead, which the next begins at, in either
    direction; source: where the method is published.
    """

    order: int
    source: str
    history: int = 0
    carries: bool = False
    options: tuple[Option, ...] = ()

    @property
    def calls_per_step(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return any(option.name == "eta" for option in self.options)

    def correct(self, point: Point, past: History) -> Point:
        """The step's starting point, made better now that the velocity there is known."""
        return point

    def step(self, state: State) -> Tensor:
        """x at `state.target`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Course:
    """All that a method may use that goes from end to end in its own way.

    x: where it starts, at levels[0]; levels: the schedule; history: what the part before handed on; evaluate and
    options: as a State's; report(how many of the levels lie behind, starting point): to be told of each step taken.
    """

    x: Tensor
    levels: Sequence[float]
    history: History
    evaluate: Evaluate
    options: Mapping[str, float]
    report: Callable[[int, Point], object]


@dataclass(frozen=True, kw_only=True)
class OwnCourse(Method):
    """A solver whose steps are not the schedule's, or whose state is more than x."""

    def follow(self, course: Course) -> tuple[Tensor, History]:
        """x at the last level, and what the next part needs."""
        raise NotImplementedError
