"""The noise that a run starts from, drawn from its seed: ComfyUI's, or one seed for each image, and variations."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.sample
import torch
from torch import Tensor

from ....mmdit_core.flow.slerp import slerp

SEEDS = 2**64
STEP_NOISE = 0x5DE0_5EED_0000_0001  # keeps the noise of stochastic steps apart from the starting noise of near seeds


@dataclass(frozen=True)
class Seeds:
    """The seeds of a batch's noise.

    Fields: each, True: image k is the one that seed + k gives alone or, with a variation, variation_seed + k; False:
    one seed's noise continues through the batch, as in ComfyUI. variation, how far the noise goes from the seed's to
    the variation seed's, in [0, 1]. steps, the seed of the noise of stochastic steps; None for the seed.
    """

    seed: int
    each: bool = False
    variation: float = 0.0
    variation_seed: int = 0
    steps: int | None = None

    def start_noise(self, samples: Tensor, indices: list[int] | None) -> Tensor:
        """The starting noise, made on the CPU. Args: samples [B, ...]; indices, the LATENT's batch_index."""
        if not self.variation:
            return self._draw(samples, indices, self.seed, self.each)
        start = self._draw(samples, indices, self.seed, each=False)
        end = self._draw(samples, indices, self.variation_seed, self.each)
        return slerp(start, end, self.variation)

    def step_seeds(self, batch: int, indices: list[int] | None) -> tuple[int, ...]:
        """Seeds of the noise of stochastic steps: one for all images, or one for each."""
        if not self.each:
            batch, indices = 1, None
        if self.steps is not None:
            return (self.steps ^ STEP_NOISE,) * batch
        numbers = range(batch) if indices is None else indices
        return tuple(_plus(self.seed, 0 if self.variation else number) ^ STEP_NOISE for number in numbers)

    def _draw(self, samples: Tensor, indices: list[int] | None, seed: int, each: bool) -> Tensor:
        if not self.each:
            return comfy.sample.prepare_noise(samples, seed, indices)
        numbers = range(len(samples)) if indices is None else indices
        return torch.cat([comfy.sample.prepare_noise(samples[:1], _plus(seed, n if each else 0)) for n in numbers])


def _plus(seed: int, number: int) -> int:
    return (seed + number) % SEEDS
