"""Sigma schedules for rectified flow.

A schedule is a function (steps, shift, **options) -> [steps + 1] from 1 to 0; SCHEDULES names them. Each one is
shift_sigma(curve, shift), except "sd3", which shifts its tail twice. Schedules are float64 on the CPU: they are read
once, and a solver's order is visible only in float64.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..typed import plain_signs
from .sigma import SIGMA_TOLERANCE, TRAIN_STEPS, shift_sigma

MIN_DENOISE = 1e-4
MOST_STEPS = 100_000  # of a whole schedule, steps / denoise: beta takes 0.3 s for so many
SMALLEST_SIGMA = 1e-37  # of those above 0: float32, in which models compute, has hardly smaller ones
FULL_DENOISE = 0.9999  # above it, denoise is 1
NEWTON_STEPS = 20  # at most, for beta quantiles; every allowed shape converges earlier


def linear(steps: int, shift: float) -> Tensor:
    """Even steps, shifted: shift(1 - i / steps). With shift e^mu this is FLUX's grid.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    """
    return shift_sigma(_falling(steps), shift)


def sd3(steps: int, shift: float) -> Tensor:
    """SD3's published schedule: even steps down to the lowest trained sigma, then 0.

    The lowest sigma is already shifted before the schedule is, so the tail is shifted twice, as published.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    Source: Stability AI's SD3 reference code; diffusers' FlowMatchEulerDiscreteScheduler.
    """
    lowest = shift_sigma(1 / TRAIN_STEPS, shift)
    grid = torch.linspace(1.0, lowest, steps, dtype=torch.float64)
    return torch.cat([shift_sigma(grid, shift), grid.new_zeros(1)])


def beta(steps: int, shift: float, *, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Quantiles of a beta distribution, shifted: at the default 0.6, 0.6 smaller steps at both ends.

    Not rounded to the 1000 trained timesteps, which would merge steps.

    Args: steps >= 1; shift > 0; alpha, beta in [0.3, 10]: a lower alpha puts more steps at low sigma, a lower beta at
        high sigma.
    Returns: [steps + 1], 1 to 0.
    Raises: ValueError if alpha or beta is out of range.
    Source: Lee et al. 2024, "Beta sampling is all you need".
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0.3 <= value <= 10:
            raise ValueError(f"sigmas: {name} is {value}; it must be in [0.3, 10]")
    return shift_sigma(beta_quantile(_falling(steps), alpha, beta), shift)


def karras(steps: int, shift: float, *, rho: float = 7.0) -> Tensor:
    """Even steps of sigma^(1/rho) down to the lowest trained sigma, shifted, then 0: most steps at low sigma.

    Args: steps >= 1; shift > 0; rho in [0.1, 100], higher for more steps at low sigma, 1 for even steps.
    Returns: [steps + 1], 1 to 0.
    Raises: ValueError if rho is out of range.
    Source: Karras et al. 2022, eq. 5, with sigma_max 1.
    """
    if not 0.1 <= rho <= 100:
        raise ValueError(f"sigmas: rho is {rho}; it must be in [0.1, 100]")
    roots = torch.linspace(1.0, (1 / TRAIN_STEPS) ** (1 / rho), steps, dtype=torch.float64)
    return torch.cat([shift_sigma(roots**rho, shift), roots.new_zeros(1)])


def cosine(steps: int, shift: float) -> Tensor:
    """A half cosine wave, (1 - cos(pi * u)) / 2 for even u, shifted: smaller steps at both ends.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    Source: the squared cosine of Nichol and Dhariwal 2021, "Improved DDPM", eq. 17, as sigma.
    """
    return shift_sigma(torch.sin(_falling(steps) * (math.pi / 2)) ** 2, shift)


def log_snr(steps: int, shift: float) -> Tensor:
    """Even steps of the log-SNR log((1 - sigma) / sigma), shifted: most steps at both ends, no long step.

    Sigmas 1 and 0, where it is infinite, replace the first and the last value, one trained timestep inside.

    Args: steps >= 1; shift > 0, which moves every log-SNR by -log(shift). Returns: [steps + 1], 1 to 0.
    Source: Lu et al. 2022, "DPM-Solver", section 3.2 (uniform in lambda).
    """
    most = math.log(TRAIN_STEPS - 1)
    return shift_sigma(_with_ends(torch.sigmoid(most * (2 * _falling(steps) - 1))), shift)


def cosmap(steps: int, shift: float) -> Tensor:
    """The sigmas with the log-SNR of even steps of the cosine diffusion schedule, shifted.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    Source: Esser et al. 2024, section 3.1, CosMap: 1 - 1 / (tan(pi * u / 2) + 1).
    """
    angle = _falling(steps) * (math.pi / 2)
    return shift_sigma(_with_ends(angle.sin() / (angle.sin() + angle.cos())), shift)


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "sd3": sd3,
    "beta": beta,
    "karras": karras,
    "cosine": cosine,
    "log_snr": log_snr,
    "cosmap": cosmap,
}


def sigmas(
    steps: int, schedule: str = "linear", shift: float = 3.0, *, denoise: float = 1.0, **options: float
) -> Tensor:
    """The sigmas of a sampling run.

    Args: steps >= 1; schedule a name in SCHEDULES; shift > 0; denoise in [1e-4, 1], below 1 for image to image:
        the last `steps` steps of a schedule of int(steps / denoise), at most MOST_STEPS; options of the schedule: the
        keywords of its function.
    Returns: [steps + 1], float64 on the CPU, from 1 (lower when denoise < 1) to 0.
    Raises: ValueError with the argument, what was found, and what is right.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"sigmas: steps is {steps!r}; it must be a whole number >= 1")
    if schedule not in SCHEDULES:
        raise ValueError(f"sigmas: schedule {schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    known = inspect.getfullargspec(SCHEDULES[schedule]).kwonlyargs
    for name in options:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"sigmas: schedule {schedule!r} has no option {name!r}; {takes}")
    if not MIN_DENOISE <= denoise <= 1:
        raise ValueError(f"sigmas: denoise is {denoise}; it must be in [{MIN_DENOISE}, 1]")
    total = whole_steps(steps, denoise)
    if total > MOST_STEPS:
        found = f"{steps} steps at denoise {denoise:g} are the end of a schedule of {total}"
        raise ValueError(f"sigmas: {found}; it may have at most {MOST_STEPS}")
    return SCHEDULES[schedule](total, shift, **options)[-(steps + 1) :]


def whole_steps(steps: int, denoise: float) -> int:
    """The steps of the schedule of which a run with this denoise, in [MIN_DENOISE, 1], is the end."""
    return steps if denoise > FULL_DENOISE else int(steps / denoise)


def parse_sigmas(values: str | Sequence[float]) -> Tensor:
    """A schedule from its sigmas, without a shift.

    Args: values, at least two, in [0, 1], strictly falling: numbers, or a text of numbers separated by commas,
        semicolons, spaces or line ends, such as "1, 0.9, 0.6, 0", also in full-width signs.
    Returns: [n], float64 on the CPU.
    Raises: ValueError with the value, its index, and what is right.
    """
    if isinstance(values, str):
        values = [_number(part) for part in re.split(r"[\s,;]+", plain_signs(values)) if part]
    grid = torch.tensor([float(value) for value in values], dtype=torch.float64)
    if len(grid) < 2:
        raise ValueError(f"there are {len(grid)} sigmas; a step needs two, such as 1, 0")
    for index, sigma in enumerate(grid.tolist()):
        if not 0 <= sigma <= 1 + SIGMA_TOLERANCE:
            raise ValueError(f"sigma {index} is {sigma:g}; it must be in [0, 1]")
        if index and not sigma < grid[index - 1]:
            last = f"sigma {index - 1} is {grid[index - 1]:g}"
            raise ValueError(f"{last} and sigma {index} is {sigma:g}; sigmas must fall")
        if 0 < sigma < SMALLEST_SIGMA:
            raise ValueError(f"sigma {index} is {sigma:g}; above 0, it must be at least {SMALLEST_SIGMA:g}")
    return grid.clamp(max=1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number such as 0.9") from None


def beta_quantile(probability: Tensor, a: float, b: float) -> Tensor:
    """Inverse of the beta distribution's cumulative function.

    Args: probability [n], float64 in [0, 1]; a, b in [0.1, 10].
    Returns: [n], float64; 0 and 1 are fixed points.
    Source: DLMF 8.17.7, the power series of the incomplete beta function, which converges fast up to 1/2; the mirrored
        distribution above. Inverted by Newton's method.
    """
    half = _beta_cumulative(probability.new_tensor(0.5**a), a, b)
    below = _lower_beta_quantile(probability, a, b)
    return torch.where(probability <= half, below, 1 - _lower_beta_quantile(1 - probability, b, a))


def _beta_cumulative(power: Tensor, a: float, b: float) -> Tensor:
    """Cumulative function of the beta distribution at x in [0, 1/2], given x^a."""
    x, coefficient, coefficients = power ** (1 / a), 1.0, []
    for n in range(64):
        coefficients.append(coefficient / (a + n))
        coefficient *= (n + 1 - b) / (n + 1)
    series = torch.zeros_like(x)
    for value in reversed(coefficients):
        series = series * x + value
    return power * series / _beta_function(a, b)


def _beta_function(a: float, b: float) -> float:
    return math.exp(math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))


def _lower_beta_quantile(probability: Tensor, a: float, b: float) -> Tensor:
    """Inverse of `_beta_cumulative` as x; 1/2 above its range."""
    # In x^a the cumulative function is nearly linear and convex or concave, so that Newton's method converges from the
    # end chosen here, and the smallest quantiles keep their precision.
    most = probability.new_tensor(0.5**a)
    target = probability.minimum(_beta_cumulative(most, a, b))
    power = torch.full_like(target, 0.5**a if b < 1 else 0.0)
    for _ in range(NEWTON_STEPS):
        slope = (1 - power ** (1 / a)) ** (b - 1) / (a * _beta_function(a, b))
        before, power = power, (power + (target - _beta_cumulative(power, a, b)) / slope).clamp(0.0, 0.5**a)
        if (power - before).abs().max() < 1e-15:
            break
    return torch.where(probability > 0, power ** (1 / a), 0.0)


def _falling(steps: int) -> Tensor:
    """Even numbers [steps + 1] from exactly 1 to exactly 0."""
    return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps


def _with_ends(grid: Tensor) -> Tensor:
    """The grid with exactly 1 and 0 at its ends."""
    return torch.cat([grid.new_ones(1), grid[1:-1], grid.new_zeros(1)])
