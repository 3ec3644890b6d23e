"""Sigma schedules for rectified flow, and the shifts that warp them.

A schedule is a function (steps, shift, **options) -> [steps + 1] from 1 to 0; SCHEDULES names them. `shift` warps
each in the same way, after its curve: shift_sigma(curve). Only "sd3" differs, whose own recipe shifts its tail twice.
Schedules are made in float64 on the CPU: they are read once, and a solver's order shows only in float64.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .sigma import SIGMA_TOLERANCE, TRAIN_STEPS, shift_sigma

MIN_DENOISE = 1e-4  # keeps steps / denoise, the length of the whole schedule, within reason
NEWTON_STEPS = 20  # at most, for beta quantiles; every shape allowed settles sooner
FULL_DENOISE = 0.9999  # the host's threshold: above it a run is a full one


def linear(steps: int, shift: float) -> Tensor:
    """Even steps, shifted: shift(1 - i / steps). With shift e^mu this is FLUX's own grid.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    """
    return shift_sigma(_falling(steps), shift)


def sd3(steps: int, shift: float) -> Tensor:
    """The grid that SD3 shipped with: even steps down to the lowest trained level, then 0.

    That lowest level is itself already shifted, so the tail is shifted twice: part of the recipe, kept as it is.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    Source: Stability's SD3 reference code; diffusers' flow matching scheduler; the host's "normal".
    """
    lowest = shift_sigma(1 / TRAIN_STEPS, shift)
    grid = torch.linspace(1.0, lowest, steps, dtype=torch.float64)
    return torch.cat([shift_sigma(grid, shift), grid.new_zeros(1)])


def beta(steps: int, shift: float, *, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Quantiles of a beta distribution, shifted: at the default 0.6, 0.6 smaller steps at both ends.

    The host's "beta" without its rounding to 1000 trained levels, which lets steps fall together and be dropped.

    Args: steps >= 1; shift > 0; alpha, beta in [0.3, 10]: lower alpha crowds the low levels, lower beta the high.
    Returns: [steps + 1], 1 to 0.
    Raises: ValueError if alpha or beta is out of range.
    Source: Lee et al. 2024, "Beta sampling is all you need"; the host's "beta".
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0.3 <= value <= 10:
            raise ValueError(f"sigmas: {name} is {value}; it must be in [0.3, 10]")
    return shift_sigma(beta_quantile(_falling(steps), alpha, beta), shift)


def karras(steps: int, shift: float, *, rho: float = 7.0) -> Tensor:
    """Even steps of sigma^(1/rho) down to the lowest trained level, shifted, then 0: most steps at low noise.

    Args: steps >= 1; shift > 0; rho in [0.1, 100], higher for more steps at low noise, 1 for even steps.
    Returns: [steps + 1], 1 to 0.
    Raises: ValueError if rho is out of range.
    Source: Karras et al. 2022, eq. 5, with sigma_max 1; at shift 1 the host's "karras".
    """
    if not 0.1 <= rho <= 100:
        raise ValueError(f"sigmas: rho is {rho}; it must be in [0.1, 100]")
    roots = torch.linspace(1.0, (1 / TRAIN_STEPS) ** (1 / rho), steps, dtype=torch.float64)
    return torch.cat([shift_sigma(roots**rho, shift), roots.new_zeros(1)])


def cosine(steps: int, shift: float) -> Tensor:
    """A half cosine wave, (1 - cos(pi * u)) / 2 for even u, shifted: smaller steps at both ends.

    Args: steps >= 1; shift > 0. Returns: [steps + 1], 1 to 0.
    Source: the squared cosine of Nichol and Dhariwal 2021, "Improved DDPM", eq. 17, read as the noise level.
    """
    return shift_sigma(torch.sin(_falling(steps) * (math.pi / 2)) ** 2, shift)


def log_snr(steps: int, shift: float) -> Tensor:
    """Even steps of the log-SNR log((1 - sigma) / sigma), shifted: most steps at both ends, none of them long.

    It is infinite at 1 and 0, for which its values one trained level inside stand; those themselves are not visited.

    Args: steps >= 1; shift > 0, which moves every log-SNR by -log(shift). Returns: [steps + 1], 1 to 0.
    Source: Lu et al. 2022, "DPM-Solver", section 3.2 (uniform in lambda).
    """
    most = math.log(TRAIN_STEPS - 1)
    return shift_sigma(_with_ends(torch.sigmoid(most * (2 * _falling(steps) - 1))), shift)


def cosmap(steps: int, shift: float) -> Tensor:
    """The levels at which even steps of the cosine diffusion schedule have the same log-SNR, shifted.

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
    """Noise levels to sample at.

    Args: steps >= 1; schedule a name in SCHEDULES; shift > 0; denoise in [1e-4, 1], below 1 for image to image:
        the last `steps` steps of a schedule of int(steps / denoise), as the host does; options are the schedule's own
        (the keywords of its function).
    Returns: [steps + 1], float64 on the CPU, from 1 (lower when denoise < 1) to 0.
    Raises: ValueError that names the input, what was found, and what would be right.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"sigmas: steps is {steps!r}; it must be a whole number >= 1")
    if schedule not in SCHEDULES:
        raise ValueError(f"sigmas: schedule {schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}")
    parameters = inspect.signature(SCHEDULES[schedule]).parameters
    known = [name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"sigmas: schedule {schedule!r} has no option {name!r}; {takes}")
    if not MIN_DENOISE <= denoise <= 1:
        raise ValueError(f"sigmas: denoise is {denoise}; it must be in [{MIN_DENOISE}, 1]")
    total = steps if denoise > FULL_DENOISE else int(steps / denoise)
    return SCHEDULES[schedule](total, shift, **options)[-(steps + 1) :]


def custom(levels: str | Sequence[float]) -> Tensor:
    """Noise levels given one by one.

    Args: levels, at least two, in [0, 1] and strictly falling: numbers, or a text of them with commas, semicolons,
        spaces or line ends between, such as "1, 0.9, 0.6, 0".
    Returns: [n], float64 on the CPU, as given: no shift is applied.
    Raises: ValueError that names the level, what was found, and what would be right.
    """
    given = [_number(part) for part in re.split(r"[\s,;]+", levels) if part] if isinstance(levels, str) else levels
    grid = torch.tensor([float(level) for level in given], dtype=torch.float64)
    if len(grid) < 2:
        raise ValueError(f"there are {len(grid)} levels; a step needs two, such as 1, 0")
    for index, level in enumerate(grid.tolist()):
        if not 0 <= level <= 1 + SIGMA_TOLERANCE:
            raise ValueError(f"level {index} is {level:g}; it must be in [0, 1]")
        if index and not level < grid[index - 1]:
            raise ValueError(
                f"level {index - 1} is {grid[index - 1]:g} and level {index} is {level:g}; levels must fall"
            )
    return grid.clamp(max=1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number, as 0.9 is") from None


def beta_quantile(probability: Tensor, a: float, b: float) -> Tensor:
    """Where the beta distribution's cumulative function reaches a probability.

    Args: probability [n], float64 in [0, 1]; a, b in [0.1, 10].
    Returns: [n], float64; 0 and 1 stay exactly.
    Source: DLMF 8.17.7, the power series of the incomplete beta function, which converges fast up to 1/2; beyond, the
        mirrored distribution. Inverted by Newton's method.
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
    """Inverse of `_beta_cumulative` as x; 1/2 for what lies above its range."""
    # In x^a the cumulative function is nearly straight and bends one way, so that Newton's method converges from the
    # end chosen here, and the smallest quantiles keep their digits.
    most = probability.new_tensor(0.5**a)
    wanted = probability.minimum(_beta_cumulative(most, a, b))
    power = torch.full_like(wanted, 0.5**a if b < 1 else 0.0)
    for _ in range(NEWTON_STEPS):
        slope = (1 - power ** (1 / a)) ** (b - 1) / (a * _beta_function(a, b))
        before, power = power, (power + (wanted - _beta_cumulative(power, a, b)) / slope).clamp(0.0, 0.5**a)
        if (power - before).abs().max() < 1e-15:
            break
    return torch.where(probability > 0, power ** (1 / a), 0.0)


def _falling(steps: int) -> Tensor:
    """Even numbers [steps + 1] from exactly 1 to exactly 0."""
    return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps


def _with_ends(grid: Tensor) -> Tensor:
    """The grid with exactly 1 and 0 at its ends."""
    return torch.cat([grid.new_ones(1), grid[1:-1], grid.new_zeros(1)])
