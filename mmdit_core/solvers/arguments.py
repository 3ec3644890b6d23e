"""The checks of `solve`'s arguments. Each raises a ValueError with the argument, what was found, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..flow.sigma import SIGMA_TOLERANCE, same_sigma
from .base import History, Method

Generators = torch.Generator | Sequence[torch.Generator]


def read_options(solver: str, method: Method, given: Mapping[str, float]) -> dict[str, float]:
    """A value for each of the method's options: the given one, else the default."""
    known = {option.name: option for option in method.options}
    for name, value in given.items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"solve: solver {solver!r} has no option {name!r}; {takes}")
        option = known[name]
        if not option.low <= value <= option.high:
            bounds = f"[{option.low:g}, {option.high:g}]"
            raise ValueError(f"solve: {name} is {value}; for {solver!r} it must be in {bounds}")
    return {name: float(given.get(name, option.default)) for name, option in known.items()}


def read_sigmas(sigmas: Tensor | Sequence[float]) -> list[float]:
    """The sigmas as Python floats, checked; one that is above 1 by a rounding becomes 1."""
    # Without a dtype, torch.tensor() rounds a list to float32.
    grid = sigmas.detach().cpu().double() if isinstance(sigmas, Tensor) else torch.tensor(sigmas, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"solve: sigmas has shape {list(grid.shape)}; expected [steps + 1] with at least one step")
    for index, sigma in enumerate(grid.tolist()):
        if not 0 <= sigma <= 1 + SIGMA_TOLERANCE:
            raise ValueError(f"solve: sigmas[{index}] is {sigma}; it must be in [0, 1]")
    values = grid.clamp(max=1).tolist()
    falling = values[1] < values[0]
    for index, (sigma, following) in enumerate(zip(values, values[1:], strict=False)):
        if sigma == following or (following < sigma) != falling:
            raise ValueError(
                f"solve: sigmas[{index}] is {sigma} and sigmas[{index + 1}] is {following}; "
                "all steps must be strictly falling, or all strictly rising"
            )
    return values


def check_history(history: History, x: Tensor, sigmas: Sequence[float], method: Method) -> None:
    """Refuse a history of another shape, or one that does not lead to sigmas[0]."""
    rising = sigmas[1] > sigmas[0]
    following_sigmas = [*(point.sigma for point in history[1:]), sigmas[0]]
    for point, following in zip(history, following_sigmas, strict=False):
        if point.x.shape != x.shape:
            raise ValueError(f"solve: history is of shape {list(point.x.shape)}; expected x's, {list(x.shape)}")
        if method.reversible:
            if not same_sigma(following, point.sigma):
                raise ValueError(
                    f"solve: history ends at sigma {point.sigma:g}, and the run begins at {following:g}; "
                    "give the history of a run that ended there"
                )
        elif point.sigma >= following if rising else point.sigma <= following:
            raise ValueError(
                f"solve: history has a point at sigma {point.sigma:g}, which does not precede {following:g}; "
                "give the history of the part just before"
            )


def noise_source(
    x: Tensor, solver: str, sigmas: Sequence[float], generator: Generators | None, options: Mapping[str, float]
) -> Callable[[], Tensor]:
    """A function that draws noise of x's shape.

    It draws on the generator's device in float32, so that one seed is one image on every device and in every dtype.
    """
    if options.get("eta"):
        if generator is None:
            raise ValueError(f"solve: solver {solver!r} adds noise and there is no generator; give one, or eta 0")
        if sigmas[-1] > sigmas[0]:
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
