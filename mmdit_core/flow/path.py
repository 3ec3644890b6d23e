"""Rectified flow: the straight path between data and noise, its velocity, the loss, and the sigmas to train at.

sigma is in [0, 1]: 0 = data, 1 = noise. The network's timestep is 1000 * sigma.
Source: Liu et al. 2023, "Flow straight and fast"; Esser et al. 2024, "Scaling rectified flow transformers", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .sigma import shift_sigma


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """Point of the path at sigma: (1 - sigma) * data + sigma * noise.

    Args: data, noise [B, ...], one shape; sigma a number, 0-d or [B].
    Returns: [B, ...], data's dtype; exactly data at sigma 0 and noise at sigma 1.
    Raises: ValueError if the shapes do not fit.
    """
    _require_same_shape("noise", noise, data)
    sigma = _per_sample(sigma, data)
    return ((1 - sigma) * data + sigma * noise).to(data.dtype)


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """dx/dsigma of the path, the training target: noise - data, the same at every sigma.

    Args: data, noise [B, ...], one shape.
    Returns: [B, ...].
    Raises: ValueError if the shapes differ.
    """
    _require_same_shape("noise", noise, data)
    return noise - data


def flow_loss(velocity: Tensor, data: Tensor, noise: Tensor, *, reduction: str = "mean") -> Tensor:
    """Mean squared error of a predicted velocity against `velocity_target`, in float32 or wider.

    Args: velocity, data, noise [B, ...], one shape; reduction "mean" for one number, "sample" for one per sample.
    Returns: 0-d or [B].
    Raises: ValueError if the shapes differ or the reduction is unknown.
    """
    if reduction not in ("mean", "sample"):
        raise ValueError(f"flow_loss: reduction {reduction!r} is unknown; choose 'mean' or 'sample'")
    _require_same_shape("velocity", velocity, data)
    wide = torch.promote_types(velocity.dtype, torch.float32)
    error = (velocity.to(wide) - velocity_target(data.to(wide), noise.to(wide))).square()
    return error.mean() if reduction == "mean" else error.flatten(1).mean(1)


# Each density is a map from uniform numbers in (0, 1) to sigmas, so that stratified draws are possible.


def uniform(u: Tensor) -> Tensor:
    """Uniform sigmas. Args: u [n] in (0, 1). Returns: [n] in (0, 1)."""
    return u


def logit_normal(u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Most weight on the middle: logit(sigma) is normal.

    Args: u [n] in (0, 1); mean, above 0 for more noise; std > 0, the width.
    Returns: [n] in (0, 1).
    Raises: ValueError if std <= 0.
    Source: Esser et al. 2024, section 3.1.
    """
    if not std > 0:
        raise ValueError(f"logit_normal: std is {std}; it must be > 0")
    return torch.sigmoid(mean + std * torch.special.ndtri(u))


def mode(u: Tensor, *, scale: float = 1.29) -> Tensor:
    """Heavy tails: a positive density at the ends, with more (scale > 0) or less (< 0) weight on the middle.

    Args: u [n] in (0, 1); scale in [-1, 2 / (pi - 2)], the range in which the map is monotone.
    Returns: [n] in (0, 1).
    Raises: ValueError if scale is out of range.
    Source: Esser et al. 2024, section 3.1.
    """
    limit = 2 / (math.pi - 2)
    if not -1 <= scale <= limit:
        raise ValueError(f"mode: scale is {scale}; it must be in [-1, {limit:.4f}]")
    return 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)


def cosmap(u: Tensor) -> Tensor:
    """The log-SNR density of the cosine noise schedule, on the straight path.

    Args: u [n] in (0, 1). Returns: [n] in (0, 1), density 2 / (pi - 2 pi sigma + 2 pi sigma^2).
    Source: Esser et al. 2024, section 3.1.
    """
    return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)


DENSITIES: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform,
    "logit_normal": logit_normal,
    "mode": mode,
    "cosmap": cosmap,
}


def sample_timesteps(
    n: int,
    density: str = "logit_normal",
    *,
    shift: float = 1.0,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    **options: float,
) -> Tensor:
    """Draw sigmas to train at. The network's timestep is 1000 times the result.

    Args: n >= 0, their number; density, a name in DENSITIES; shift > 0, as for `shift_sigma`, 1 for none; options of
        the density (mean and std, or scale). The draw is on the generator's device.
    Returns: [n] sigma, float32, strictly inside (0, 1), on `device`.
    Raises: ValueError if the density is unknown or a number is out of range.
    """
    if density not in DENSITIES:
        raise ValueError(f"sample_timesteps: density {density!r} is unknown; choose one of {', '.join(DENSITIES)}")
    source = generator.device if generator is not None else device
    u = torch.rand(n, generator=generator, device=source, dtype=torch.float32)
    sigma = shift_sigma(DENSITIES[density](u, **options), shift)
    # rand() can return exactly 0, and a narrow tail can round to an end; a loss weight may divide by either.
    edge = torch.finfo(torch.float32).eps
    return sigma.clamp(edge, 1 - edge).to(device if device is not None else source)


def _require_same_shape(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name} has shape {list(value.shape)}; expected {list(like.shape)}")


def _per_sample(sigma: Tensor | float, like: Tensor) -> Tensor | float:
    """sigma [B] as [B, 1, ...], to broadcast over the samples of [B, ...]."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma
    if sigma.ndim != 1 or sigma.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"sigma has shape {list(sigma.shape)}; expected [] or [{like.shape[0]}]")
    return sigma.view(-1, *[1] * (like.ndim - 1))
