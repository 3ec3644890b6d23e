"""RF-Inversion's controllers: toward a given noise while inverting, toward the source image while sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow.sigma import LOWEST_SIGMA, PercentToSigma, percent_of_sigma
from ..flow.window import Window
from .inversion import Field


def drawn_to_noise(velocity: Field, noise: Tensor, gamma: float) -> Field:
    """The velocity of an inversion, drawn to a given noise.

    v <- (1 - gamma) * v + gamma * (noise - x) / (1 - sigma), which is noise_hat <- (1 - gamma) * noise_hat + gamma *
    noise for the noise that v leads to at sigma 1.

    Args: velocity(x, sigma); noise [B, ...]; gamma in [0, 1]: 0 is `velocity` itself, 1 leads to the noise.
    Returns: a velocity for `solve`, at sigmas below 1.
    Source: Rout et al. 2024, "RF-Inversion", arXiv 2410.10792, equation 8.
    """
    if gamma == 0:
        return velocity

    def drawn(x: Tensor, sigma: Tensor) -> Tensor:
        left = (1 - sigma).clamp(min=LOWEST_SIGMA)
        return torch.lerp(velocity(x, sigma), ((noise - x) / left).to(x.dtype), gamma)

    return drawn


@dataclass(frozen=True)
class Pull:
    """The controller of the sampling: the predicted image is drawn to the source image.

    denoised <- (1 - e) * denoised + e * source, e = eta * (1 - percent) ** decay inside the window, else 0.
    Fields: eta in [0, 1]; decay >= 0, 0 for a constant eta; window in percent of the sampling.
    Source: Rout et al. 2024, "RF-Inversion", arXiv 2410.10792, equation 15; the decay as in diffusers' pipeline.
    """

    eta: float
    decay: float = 0.0
    window: Window = Window()

    def strength_at(self, sigma: float, percent_to_sigma: PercentToSigma) -> float:
        """e at a sigma."""
        if not self.window.holds(sigma, percent_to_sigma):
            return 0.0
        percent = min(1.0, max(0.0, percent_of_sigma(sigma, percent_to_sigma)))
        return self.eta * (1 - percent) ** self.decay
