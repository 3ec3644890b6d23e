"""Solvers for dx/dsigma = velocity(x, sigma), as data.

SOLVERS is the table: each row is a frozen dataclass of coefficients with its source, whose `advance` computes one
step. `solve` does what all methods share. The coefficients of a step are Python floats from the schedule, which is read
once: no step waits for the device (except an adaptive method's, for its error), and sigma is never computed in the
precision of a half-precision x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .adaptive import CallLimitError, EmbeddedPair
from .arguments import Generators, check_history, noise_source, read_options, read_sigmas
from .base import History, Integrator, Method, Point, Problem, Step
from .exponential import LOG_SNR, MINUS_LOG_SIGMA, TwoStage, TwoStep, UniPC, midpoint, residual
from .fireflow import FireFlow
from .leapfrog import AsynchronousLeapfrog
from .multistep import AdamsBashforth
from .runge_kutta import RungeKutta
from .stochastic import EulerAncestral, TwoStepSDE

__all__ = ["SOLVERS", "CallLimitError", "History", "Method", "Point", "solve", "solve_with_history"]

Velocity = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor, Tensor], object]

_DPMPP = "Lu et al. 2022, 'DPM-Solver++', algorithm 2 (multistep, midpoint)"
_RES = "Zhang et al. 2023, 'Improved order analysis and design of exponential integrator', RES 2M"
_BY_SIGMA = "; in -log(sigma), as in Stability's code and k-diffusion"
_BY_LOG_SNR = "; in log((1 - sigma) / sigma), as in diffusers"
_BASHFORTH = "Bashforth and Adams 1883; for steps of any length Hairer, Norsett and Wanner 1993, section III.5"

SOLVERS: dict[str, Method] = {
    "euler": RungeKutta(order=1, stages=(), weights=(1.0,), source="Euler 1768"),
    "heun": RungeKutta(order=2, stages=((1.0,),), weights=(0.5, 0.5), source="Heun 1900; Karras et al. 2022, alg. 1"),
    "midpoint": RungeKutta(order=2, stages=((0.5,),), weights=(0.0, 1.0), source="Runge 1895"),
    "ralston": RungeKutta(order=2, stages=((2 / 3,),), weights=(0.25, 0.75), source="Ralston 1962"),
    "rk4": RungeKutta(
        order=4,
        stages=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        source="Kutta 1901",
    ),
    "dpmpp_2m": TwoStep(coordinate=MINUS_LOG_SIGMA, weight=midpoint, source=_DPMPP + _BY_SIGMA),
    "dpmpp_2m_logsnr": TwoStep(coordinate=LOG_SNR, weight=midpoint, source=_DPMPP + _BY_LOG_SNR),
    "res_2m": TwoStep(coordinate=MINUS_LOG_SIGMA, weight=residual, source=_RES + _BY_SIGMA),
    "res_2m_logsnr": TwoStep(coordinate=LOG_SNR, weight=residual, source=_RES + _BY_LOG_SNR),
    "res_2s": TwoStage(
        coordinate=MINUS_LOG_SIGMA,
        weight=residual,
        fraction=0.5,
        source="Hochbruck and Ostermann 2005, second order with c2 = 1/2; Zhang et al. 2023, RES 2S" + _BY_SIGMA,
    ),
    "unipc": UniPC(
        order=3,
        coordinate=LOG_SNR,
        weight=midpoint,
        source="Zhao et al. 2023, 'UniPC', B2(h), UniP-2 with UniC-2: third order together" + _BY_LOG_SNR,
    ),
    "ab2": AdamsBashforth(order=2, history=1, source=_BASHFORTH),
    "ab3": AdamsBashforth(order=3, history=2, source=_BASHFORTH),
    "ab4": AdamsBashforth(order=4, history=3, source=_BASHFORTH),
    "bosh3": EmbeddedPair(
        order=3,
        fractions=(1 / 2, 3 / 4, 1.0),
        stages=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        errors=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        source="Bogacki and Shampine 1989, 'A 3(2) pair of Runge-Kutta formulas'",
    ),
    "dopri5": EmbeddedPair(
        order=5,
        fractions=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
        stages=(
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        errors=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
        source="Dormand and Prince 1980, 'A family of embedded Runge-Kutta formulae', RK5(4)7M",
    ),
    "euler_ancestral": EulerAncestral(
        order=1, source="Karras et al. 2022 and k-diffusion's ancestral step, in the form for rectified flow"
    ),
    "dpmpp_2m_sde": TwoStepSDE(
        coordinate=LOG_SNR,
        weight=midpoint,
        source="Lu et al. 2022, 'DPM-Solver++', SDE-DPM-Solver++(2M)" + _BY_LOG_SNR,
    ),
    "leapfrog": AsynchronousLeapfrog(
        order=2,
        source="Mutze 2013, 'An asynchronous leap-frog method II'; Zhuang et al. 2021, 'MALI', there called ALF",
    ),
    "fireflow": FireFlow(order=2, source="Deng et al. 2024, 'FireFlow', arXiv 2412.07517, algorithm 1"),
}


def solve(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    solver: str = "euler",
    callback: Callback | None = None,
    generator: Generators | None = None,
    **options: float,
) -> Tensor:
    """Integrate the velocity along a schedule, from sigmas[0] to sigmas[-1].

    Args: velocity(x, sigma) -> dx/dsigma of x's shape, sigma 0-d on x's device (float64 for float64 x, else float32);
        x [B, ...], floating point; sigmas [steps + 1] in [0, 1], strictly falling (sampling) or rising (inversion);
        solver, a name in SOLVERS; callback(step, steps, x, denoised, sigma), called once after each step with the x,
        sigma and predicted data at its start (it may stop the run by raising); generator for the noise of stochastic
        solvers: one for all samples, or one for each, so that a sample's noise does not depend on the others; options
        of the solver (`SOLVERS[solver].options`): eta, or tolerance and max_calls.
        An adaptive solver chooses its own steps between the first and the last sigma; its callback's `step` is the
        number of given sigmas passed.
    Returns: x at sigmas[-1], same shape, dtype and device; the given x is not changed.
    Raises: ValueError with the argument, what was found, and what is right; CallLimitError.
    """
    return solve_with_history(velocity, x, sigmas, solver, callback, generator, (), **options)[0]


def solve_with_history(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    solver: str = "euler",
    callback: Callback | None = None,
    generator: Generators | None = None,
    history: History = (),
    **options: float,
) -> tuple[Tensor, History]:
    """`solve` for a run that is split over several calls: multistep solvers continue with the history of the last one.

    Args: as `solve`'s; history, the result of the call for the part before, or () for a new run. A generator continues
        in the state in which that call left it. A reversible solver also turns back: with the history of a run, the
        same sigmas in reverse order lead to its start.
    Returns: x at sigmas[-1] and the history for the next part: at most as many points as the solver uses, or the end
        point of a reversible solver.
    Raises: as `solve`; ValueError if the history is of another shape or does not lead to sigmas[0].
    """
    if solver not in SOLVERS:
        raise ValueError(f"solve: solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}")
    if not x.is_floating_point():
        raise ValueError(f"solve: x is {x.dtype}; it must be floating point")
    method = SOLVERS[solver]
    values = read_options(solver, method, options)
    grid = read_sigmas(sigmas)
    check_history(history, x, grid, method)
    noise = noise_source(x, solver, grid, generator, values)
    steps = len(grid) - 1
    sigma_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def as_tensor(sigma: float) -> Tensor:
        # A fill runs on the device; a copy of a number to the device would wait for its queue.
        return torch.full((), sigma, dtype=sigma_dtype, device=x.device)

    def checked(v: Tensor) -> Tensor:
        if v.shape != x.shape:
            raise ValueError(f"solve: velocity returned shape {list(v.shape)}; expected x's, {list(x.shape)}")
        return v

    def evaluate(x_at: Tensor, sigma: float) -> Tensor:
        return checked(velocity(x_at.to(x.dtype), as_tensor(sigma)))

    def report(step: int, point: Point) -> None:
        if callback is not None:
            callback(step, steps, point.x.to(x.dtype), point.denoised.to(x.dtype), as_tensor(point.sigma))

    if isinstance(method, Integrator):
        end, history = method.integrate(Problem(x, grid, history, evaluate, values, report))
        return end.to(x.dtype), history
    here, past = x, _last(history, method.history)
    for step, (sigma, target) in enumerate(zip(grid, grid[1:], strict=False)):
        # `here` has x's dtype already, so the velocity is called directly.
        point = method.correct(Point(sigma, here, checked(velocity(here, as_tensor(sigma)))), past)
        here = method.advance(Step(point, target, past, evaluate, noise, values)).to(x.dtype)
        past = _last((*past, point), method.history)
        report(step, point)
    return here, past


def _last(points: History, count: int) -> History:
    return points[-count:] if count else ()
