"""Solvers for dx/dsigma = velocity(x, sigma), as data.

A method is a row of SOLVERS: a frozen dataclass of numbers and small functions with its source beside it, whose
`step` says how to get from one noise level to the next. `solve` does everything that all methods share.
All of a step's coefficients are Python floats worked out from the schedule, which is read once: no step waits for
the device, and low-precision x is never used to compute with sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor, Tensor], object]

ROUNDING = 1e-6  # schedules computed in float32 may overshoot 1 by a rounding


@dataclass(frozen=True)
class Point:
    """A place on the trajectory: x [B, ...] at noise level sigma and the velocity there."""

    sigma: float
    x: Tensor
    velocity: Tensor

    @property
    def denoised(self) -> Tensor:
        return self.x - self.sigma * self.velocity


@dataclass(frozen=True)
class State:
    """All that a step may look at.

    point: where the step starts; target: the sigma where it ends; past: earlier starting points, newest last, at most
    as many as the method's `history`; evaluate(x, sigma): one more call of the velocity; generator: for noise.
    """

    point: Point
    target: float
    past: tuple[Point, ...]
    evaluate: Callable[[Tensor, float], Tensor]
    generator: torch.Generator | None


class Method(Protocol):
    """A solver. `step` returns x at `state.target`; it keeps nothing between steps, `state.past` does."""

    @property
    def order(self) -> int: ...

    @property
    def calls_per_step(self) -> int: ...

    @property
    def history(self) -> int: ...

    @property
    def source(self) -> str: ...

    def step(self, state: State) -> Tensor: ...


@dataclass(frozen=True)
class RungeKutta:
    """Explicit Runge-Kutta method in sigma, from its tableau.

    stages: the tableau's rows after the first, one number per slope known by then (their sum is the stage's place in
    the step); weights: one per slope. Where the tableau looks at the end of a step and that end is sigma 0, the step
    is an Euler step: networks are not trained at sigma 0, and denoised-based models divide by it.
    """

    order: int
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    source: str
    history: int = 0

    @property
    def calls_per_step(self) -> int:
        return len(self.weights)

    def step(self, state: State) -> Tensor:
        start, target = state.point, state.target
        h = target - start.sigma
        slopes = [start.velocity]
        if target == 0 and any(sum(row) == 1 for row in self.stages):
            return start.x + h * slopes[0]
        for row in self.stages:
            place = sum(row)
            # Adding h may miss the target by a rounding, and a network sees that as another timestep.
            sigma = target if place == 1 else start.sigma + place * h
            slopes.append(state.evaluate(start.x + _weighted(slopes, row, h), sigma))
        return start.x + _weighted(slopes, self.weights, h)


@dataclass(frozen=True)
class Coordinate:
    """The time that an exponential method is exact in: `log(sigma)` rises from noise to data, maybe through infinities
    at the ends; `scale(target)` is what the method's correction is multiplied by.
    """

    log: Callable[[float], float]
    scale: Callable[[float], float]


def _minus_log_sigma(sigma: float) -> float:
    return -math.log(sigma) if sigma > 0 else math.inf


def _log_snr(sigma: float) -> float:
    if sigma >= 1:
        return -math.inf
    return math.log((1 - sigma) / sigma) if sigma > 0 else math.inf


NOISE_TO_ONE = Coordinate(log=_minus_log_sigma, scale=lambda target: 1.0)
SIGNAL_TO_NOISE = Coordinate(log=_log_snr, scale=lambda target: 1 - target)


def _midpoint(h: float) -> float:
    return -math.expm1(-h) / 2


def _residual(h: float) -> float:
    return 1 + math.expm1(-h) / h


@dataclass(frozen=True)
class TwoStep:
    """Exponential method that is exact for a constant denoised, corrected by how the denoised moved in the last step.

    x' = x + (sigma' - sigma) * v + scale(sigma') * weight(h) * h / h_last * (denoised - denoised_last), with h the
    step in the coordinate's time. The correction is zero without a past, where h_last is infinite (the formula's limit)
    and where h is (the usual first-order last step to sigma 0).
    """

    coordinate: Coordinate
    weight: Callable[[float], float]
    source: str
    order: int = 2
    calls_per_step: int = 1
    history: int = 1

    def step(self, state: State) -> Tensor:
        start, target = state.point, state.target
        x = start.x + (target - start.sigma) * start.velocity
        factor = self._correction(state)
        return x + factor * (start.denoised - state.past[-1].denoised) if factor else x

    def _correction(self, state: State) -> float:
        if not state.past:
            return 0.0
        last, now, then = (self.coordinate.log(s) for s in (state.past[-1].sigma, state.point.sigma, state.target))
        h, h_last = then - now, now - last
        # Two neighbouring sigmas may have one logarithm; a step of no length needs no correction.
        if not math.isfinite(h) or h == 0 or h_last == 0:
            return 0.0
        return self.coordinate.scale(state.target) * self.weight(h) * h / h_last


_DPMPP = "Lu et al. 2022, 'DPM-Solver++', algorithm 2 (multistep, midpoint)"
_RES = "Zhang et al. 2023, 'Improved order analysis and design of exponential integrator', RES 2M"
_BY_SIGMA = "; time -log(sigma), as Stability and k-diffusion run it"
_BY_LOG_SNR = "; time log((1 - sigma) / sigma), as diffusers runs it"

SOLVERS: dict[str, Method] = {
    "euler": RungeKutta(order=1, stages=(), weights=(1.0,), source="Euler 1768"),
    "heun": RungeKutta(order=2, stages=((1.0,),), weights=(0.5, 0.5), source="Heun 1900; Karras et al. 2022, alg. 1"),
    "dpmpp_2m": TwoStep(NOISE_TO_ONE, _midpoint, source=_DPMPP + _BY_SIGMA),
    "dpmpp_2m_logsnr": TwoStep(SIGNAL_TO_NOISE, _midpoint, source=_DPMPP + _BY_LOG_SNR),
    "res_2m": TwoStep(NOISE_TO_ONE, _residual, source=_RES + _BY_SIGMA),
    "res_2m_logsnr": TwoStep(SIGNAL_TO_NOISE, _residual, source=_RES + _BY_LOG_SNR),
}


def solve(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    solver: str = "euler",
    callback: Callback | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Follow the velocity through a schedule, from sigmas[0] to sigmas[-1].

    Args: velocity(x, sigma) -> dx/dsigma of x's shape, sigma 0-d on x's device (float64 for float64 x, else float32);
        x [B, ...], floating point; sigmas [steps + 1] in [0, 1], strictly falling (sampling) or rising (inversion);
        solver a name in SOLVERS; callback(step, steps, x, denoised, sigma) once after each step, with the x and sigma
        where that step began and the data predicted there (it may stop the run by raising); generator: for the noise
        of stochastic solvers.
    Returns: x at sigmas[-1], same shape, dtype and device; the x given is not changed.
    Raises: ValueError that names the input, what was found, and what would be right.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solve: solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}")
    if not x.is_floating_point():
        raise ValueError(f"solve: x is {x.dtype}; it must be floating point")
    method = SOLVERS[solver]
    levels = _read_schedule(sigmas)
    steps = len(levels) - 1
    sigma_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def as_tensor(sigma: float) -> Tensor:
        # A fill runs on the device; a copy of a number to it would wait for all that is queued there.
        return torch.full((), sigma, dtype=sigma_dtype, device=x.device)

    def evaluate(place: Tensor, sigma: float) -> Tensor:
        slope = velocity(place.to(x.dtype), as_tensor(sigma))
        if slope.shape != x.shape:
            raise ValueError(f"solve: velocity returned shape {list(slope.shape)}; expected x's, {list(x.shape)}")
        return slope

    here = x
    past: tuple[Point, ...] = ()
    for step in range(steps):
        point = Point(levels[step], here, evaluate(here, levels[step]))
        here = method.step(State(point, levels[step + 1], past, evaluate, generator)).to(x.dtype)
        past = (*past, point)[-method.history :] if method.history else ()
        if callback is not None:
            callback(step, steps, point.x, point.denoised.to(x.dtype), as_tensor(point.sigma))
    return here


def _weighted(slopes: Sequence[Tensor], weights: Sequence[float], h: float) -> Tensor:
    """h times the weighted sum of slopes; zero weights cost nothing."""
    terms = [(h * weight) * slope for slope, weight in zip(slopes, weights, strict=True) if weight]
    return sum(terms[1:], terms[0])


def _read_schedule(sigmas: Tensor | Sequence[float]) -> list[float]:
    # A list read without a dtype would be rounded to float32.
    grid = sigmas.detach().cpu().double() if isinstance(sigmas, Tensor) else torch.tensor(sigmas, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"solve: sigmas has shape {list(grid.shape)}; expected [steps + 1] with at least one step")
    for index, level in enumerate(grid.tolist()):
        if not 0 <= level <= 1 + ROUNDING:
            raise ValueError(f"solve: sigmas[{index}] is {level}; it must be in [0, 1]")
    levels = grid.clamp(max=1).tolist()
    falling = levels[1] < levels[0]
    for index, (level, following) in enumerate(zip(levels, levels[1:], strict=False)):
        if level == following or (following < level) != falling:
            raise ValueError(
                f"solve: sigmas[{index}] is {level} and sigmas[{index + 1}] is {following}; "
                "all steps must be strictly falling, or all strictly rising"
            )
    return levels
