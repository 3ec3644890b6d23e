"""Inversion of an image to noise along the model's velocity, under a noise mask."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..flow.sigma import LOWEST_SIGMA

Field = Callable[[Tensor, Tensor], Tensor]  # (x, sigma) -> a tensor of x's shape


def masked_velocity(velocity: Field, mask_at: Field, image: Tensor, noise: Tensor) -> Field:
    """The velocity (x - denoised) / sigma of inpainting with the model's `velocity`.

    denoised = mask * (masked_x - sigma * velocity(masked_x)) + (1 - mask) * image,
    masked_x = mask * x + (1 - mask) * path, path = (1 - sigma) * image + sigma * noise.
    The form below does not divide by sigma where the mask is 0 or 1, so that it holds at sigma 0: x - path is 0 under
    mask 0, and its factor is 0 under mask 1.

    Args: velocity(x, sigma) of the model; mask_at(x, sigma) in [0, 1], 1 where the image is inverted; image, noise
        [B, C, H, W], the ends of the path outside the mask.
    Returns: a velocity for `solve`; from sigma 0 up, what is outside the mask follows the path.
    """

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        mask = mask_at(x, sigma)
        offset = x - image - sigma * (noise - image)
        masked_x = x - (1 - mask) * offset
        pull = (1 - mask**2) * offset / sigma.clamp(min=LOWEST_SIGMA)
        return mask * velocity(masked_x, sigma) + (1 - mask) * (noise - image) + pull

    return masked
