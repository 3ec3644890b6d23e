"""Solvers for dx/dsigma = velocity(x, sigma), as data.

A method is a row of SOLVERS: a frozen dataclass of numbers and small functions with its source beside it, whose
`step` says how to get from one noise level to the next. `solve` does everything that all methods share.
All of a step's coefficients are Python floats worked out from the schedule, which is read once: no step waits for
the device (but an adaptive method's, for its error), and low-precision x is never used to compute with sigma.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..flow.sigma import SIGMA_TOLERANCE, same_sigma
from .base import Course, History, Method, OwnCourse, Point, State
from .exponential import NOISE_TO_ONE, SIGNAL_TO_NOISE, TwoStage, TwoStep, UniPC, midpoint, residual
from .leapfrog import AsynchronousLeapfrog
from .multistep import AdamsBashforth
from .runge_kutta import EmbeddedPair, RungeKutta
from .stochastic import EulerAncestral, TwoStepSDE

Velocity = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor, Tensor], object]
Generators = torch.Generator | Sequence[torch.Generator]

_DPMPP = "Lu et al. 2022, 'DPM-Solver++', algorithm 2 (multistep, midpoint)"
_RES = "Zhang et al. 2023, 'Improved order analysis and design of exponential integrator', RES 2M"
_BY_SIGMA = "; time -log(sigma), as Stability and k-diffusion run it"
_BY_LOG_SNR = "; time log((1 - sigma) / sigma), as diffusers runs it"
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
    "dpmpp_2m": TwoStep(coordinate=NOISE_TO_ONE, weight=midpoint, source=_DPMPP + _BY_SIGMA),
    "dpmpp_2m_logsnr": TwoStep(coordinate=SIGNAL_TO_NOISE, weight=midpoint, source=_DPMPP + _BY_LOG_SNR),
    "res_2m": TwoStep(coordinate=NOISE_TO_ONE, weight=residual, source=_RES + _BY_SIGMA),
    "res_2m_logsnr": TwoStep(coordinate=SIGNAL_TO_NOISE, weight=residual, source=_RES + _BY_LOG_SNR),
    "res_2s": TwoStage(
        coordinate=NOISE_TO_ONE,
        weight=residual,
        place=0.5,
        source="Hochbruck and Ostermann 2005, second order with c2 = 1/2; Zhang et al. 2023, RES 2S" + _BY_SIGMA,
    ),
    "unipc": UniPC(
        order=3,
        coordinate=SIGNAL_TO_NOISE,
        weight=midpoint,
        source="Zhao et al. 2023, 'UniPC', B2(h), UniP-2 with UniC-2: third order together" + _BY_LOG_SNR,
    ),
    "ab2": AdamsBashforth(order=2, history=1, source=_BASHFORTH),
    "ab3": AdamsBashforth(order=3, history=2, source=_BASHFORTH),
    "ab4": AdamsBashforth(order=4, history=3, source=_BASHFORTH),
    "bosh3": EmbeddedPair(
        order=3,
        places=(1 / 2, 3 / 4, 1.0),
        stages=((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        errors=(2 / 9 - 7 / 24, 1 / 3 - 1 / 4, 4 / 9 - 1 / 3, -1 / 8),
        source="Bogacki and Shampine 1989, 'A 3(2) pair of Runge-Kutta formulas'",
    ),
    "dopri5": EmbeddedPair(
        order=5,
        places=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
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
        order=1, source="Karras et al. 2022 and k-diffusion's ancestral step, in ComfyUI's form for rectified flow"
    ),
    "dpmpp_2m_sde": TwoStepSDE(
        coordinate=SIGNAL_TO_NOISE,
        weight=midpoint,
        source="Lu et al. 2022, 'DPM-Solver++', SDE-DPM-Solver++(2M)" + _BY_LOG_SNR,
    ),
    "leapfrog": AsynchronousLeapfrog(
        order=2,
        source="Mutze 2013, 'An asynchronous leap-frog method II'; Zhuang et al. 2021, 'MALI', there called ALF",
    ),
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
    """Follow the velocity through a schedule, from sigmas[0] to sigmas[-1].

    Args: velocity(x, sigma) -> dx/dsigma of x's shape, sigma 0-d on x's device (float64 for float64 x, else float32);
        x [B, ...], floating point; sigmas [steps + 1] in [0, 1], strictly falling (sampling) or rising (inversion);
        solver a name in SOLVERS; callback(step, steps, x, denoised, sigma) once after each step, with the x and sigma
        where that step began and the data predicted there (it may stop the run by raising); generator: for the noise
        of stochastic solvers, one for all or one for each sample, so that a sample's noise does not depend on the
        others; options: those of the solver (`SOLVERS[solver].options`), eta or tolerance and max_calls.
        An adaptive solver takes steps of its own between the schedule's ends; its callback's `step` is how many of
        the given levels lie behind.
    Returns: x at sigmas[-1], same shape, dtype and device; the x given is not changed.
    Raises: ValueError that names the input, what was found, and what would be right.
    """
    return solve_part(velocity, x, sigmas, solver, callback, generator, (), **options)[0]


def solve_part(
    velocity: Velocity,
    x: Tensor,
    sigmas: Tensor | Sequence[float],
    solver: str = "euler",
    callback: Callback | None = None,
    generator: Generators | None = None,
    history: History = (),
    **options: float,
) -> tuple[Tensor, History]:
    """`solve` for a run that is split over several calls: solvers with a memory hand on what they remember.

    Args: as `solve`'s; history: what the call for the part before gave back, or () to begin afresh. The generator, if
        there is one, goes on as that call left it. "leapfrog" may also turn back: with the history of a run, the same
        levels backwards lead to where that run began.
    Returns: x at sigmas[-1] and the history for the next part: at most as many points as the solver looks back at, or
        the point at the end of a solver that `carries` one.
    Raises: as `solve`; ValueError if the history is of another shape or does not lie before sigmas[0].
    """
    if solver not in SOLVERS:
        raise ValueError(f"solve: solver {solver!r} is unknown; choose one of {', '.join(SOLVERS)}")
    if not x.is_floating_point():
        raise ValueError(f"solve: x is {x.dtype}; it must be floating point")
    method = SOLVERS[solver]
    chosen = _read_options(solver, method, options)
    levels = _read_schedule(sigmas)
    _check_history(history, x, levels, method)
    noise = _noise_like(x, solver, levels, generator, chosen)
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

    def report(step: int, point: Point) -> None:
        if callback is not None:
            callback(step, steps, point.x.to(x.dtype), point.denoised.to(x.dtype), as_tensor(point.sigma))

    if isinstance(method, OwnCourse):
        end, handed_on = method.follow(Course(x, levels, history, evaluate, chosen, report))
        return end.to(x.dtype), handed_on
    here, past = x, _last(history, method.history)
    for step in range(steps):
        point = method.correct(Point(levels[step], here, evaluate(here, levels[step])), past)
        here = method.step(State(point, levels[step + 1], past, evaluate, noise, chosen)).to(x.dtype)
        past = _last((*past, point), method.history)
        report(step, point)
    return here, past


def _last(points: History, count: int) -> History:
    return points[-count:] if count else ()


def _noise_like(
    x: Tensor, solver: str, levels: list[float], generator: Generators | None, options: Mapping[str, float]
) -> Callable[[], Tensor]:
    """Draws noise where the generator is, in float32: one seed is one picture on every device and in every dtype."""
    if options.get("eta"):
        if generator is None:
            raise ValueError(f"solve: solver {solver!r} adds noise and there is no generator; give one, or eta 0")
        if levels[-1] > levels[0]:
            raise ValueError(f"solve: solver {solver!r} adds noise and sigmas rise; for inversion give eta 0")
    if isinstance(generator, Sequence) and len(generator) != len(x):
        raise ValueError(f"solve: there are {len(generator)} generators for {len(x)} samples; give one for each")

    def draw(source: torch.Generator, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=source, device=source.device).to(x.device, x.dtype)

    def noise() -> Tensor:
        if isinstance(generator, Sequence):
            return torch.stack([draw(source, x.shape[1:]) for source in generator])
        assert generator is not None, "a method without eta draws no noise"
        return draw(generator, x.shape)

    return noise


def _read_options(solver: str, method: Method, given: Mapping[str, float]) -> dict[str, float]:
    known = {option.name: option for option in method.options}
    for name, value in given.items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"solve: solver {solver!r} has no option {name!r}; {takes}")
        option = known[name]
        if not option.low <= value <= option.high:
            raise ValueError(
                f"solve: {name} is {value}; for {solver!r} it must be in [{option.low:g}, {option.high:g}]"
            )
    return {name: float(given.get(name, option.default)) for name, option in known.items()}


def _check_history(history: History, x: Tensor, levels: list[float], method: Method) -> None:
    direction = 1 if levels[1] > levels[0] else -1
    following_levels = [point.sigma for point in history[1:]] + [levels[0]]
    for point, following in zip(history, following_levels, strict=False):
        if point.x.shape != x.shape:
            raise ValueError(f"solve: history is of shape {list(point.x.shape)}; expected x's, {list(x.shape)}")
        if method.carries:
            if not same_sigma(following, point.sigma):
                raise ValueError(
                    f"solve: history has its point at sigma {point.sigma:g}, and the run begins at {following:g}; "
                    "give the history of a run that ended there"
                )
        elif (following - point.sigma) * direction <= 0:
            raise ValueError(
                f"solve: history has a point at sigma {point.sigma:g}, which does not lie before {following:g}; "
                "give the history of the part just before"
            )


def _read_schedule(sigmas: Tensor | Sequence[float]) -> list[float]:
    # A list read without a dtype would be rounded to float32.
    grid = sigmas.detach().cpu().double() if isinstance(sigmas, Tensor) else torch.tensor(sigmas, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"solve: sigmas has shape {list(grid.shape)}; expected [steps + 1] with at least one step")
    for index, level in enumerate(grid.tolist()):
        if not 0 <= level <= 1 + SIGMA_TOLERANCE:
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
