"""The parts of a solver: points of a trajectory, the inputs of a step, and the base classes of the methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Evaluate = Callable[[Tensor, float], Tensor]  # (x, sigma) -> velocity


@dataclass(frozen=True)
class Point:
    """A point of the trajectory: x [B, ...] at sigma, and the velocity [B, ...] there."""

    sigma: float
    x: Tensor
    velocity: Tensor

    @property
    def denoised(self) -> Tensor:
        """The data [B, ...] predicted at this point: x - sigma * velocity."""
        return self.x - self.sigma * self.velocity


History = tuple[Point, ...]


@dataclass(frozen=True)
class Option:
    """A number that a method takes besides the sigmas, in [low, high]."""

    name: str
    default: float
    low: float
    high: float


@dataclass(frozen=True)
class Step:
    """The inputs of one step.

    Fields: point, the start; target, the sigma at the end; past, earlier start points, newest last, at most as many as
    the method's `history`; evaluate(x, sigma), one more call of the velocity; noise(), standard normal noise of x's
    shape; options, a value for each of the method's options.
    """

    point: Point
    target: float
    past: History
    evaluate: Evaluate
    noise: Callable[[], Tensor]
    options: Mapping[str, float]

    def euler(self) -> Tensor:
        """x at the target along a straight line; exact if the denoised is constant."""
        return self.point.x + (self.target - self.point.sigma) * self.point.velocity


@dataclass(frozen=True, kw_only=True)
class Method:
    """A solver as data. It has no state between steps; `Step.past` is the state.

    Fields: order of the error over a whole run, once `history` points are known; source, the publication; history, the
    number of earlier points that a step uses; reversible, True if the history is the end point alone, from which a run
    continues in either direction; adaptive, True if the method chooses its own steps.
    """

    order: int
    source: str
    history: int = 0
    reversible: bool = False
    adaptive: bool = False
    options: tuple[Option, ...] = ()

    @property
    def calls_per_step(self) -> int:
        """Velocity evaluations in one step."""
        return 1

    @property
    def stochastic(self) -> bool:
        """True if the method adds noise, unless its option eta is 0."""
        return any(option.name == "eta" for option in self.options)

    def correct(self, point: Point, past: History) -> Point:
        """The start point of a step, corrected with the velocity there; most methods return it unchanged."""
        return point

    def advance(self, step: Step) -> Tensor:
        """x [B, ...] at `step.target`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Problem:
    """An initial value problem: the inputs of an `Integrator`.

    Fields: x at sigmas[0]; sigmas, the schedule; history, the result of the part before; evaluate and options as in
    Step; report(index, point), to be called after each step with the number of sigmas passed and its start point.
    """

    x: Tensor
    sigmas: Sequence[float]
    history: History
    evaluate: Evaluate
    options: Mapping[str, float]
    report: Callable[[int, Point], object]


@dataclass(frozen=True, kw_only=True)
class Integrator(Method):
    """A method that chooses its own steps, or that has more state than x."""

    def integrate(self, problem: Problem) -> tuple[Tensor, History]:
        """x at the last sigma, and the history for the next part."""
        raise NotImplementedError
