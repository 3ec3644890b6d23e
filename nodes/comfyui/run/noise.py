"""The noise that pictures grow from: the host's, or one seed for each picture, and variations of both."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.sample
import torch
from torch import Tensor

from ....mmdit_core.flow.noise import slerp

LAST_SEED = 2**64 - 1
STEP_NOISE = 0x5DE0_5EED_0000_0001  # parts the noise of stochastic steps from the starting noise of every near seed


@dataclass(frozen=True)
class Seeds:
    """Which noise a batch gets.

    each: picture k is the one that seed + k gives alone or, where there is a variation, variation_seed + k; otherwise
    one seed is drawn on through the batch, as the host does. variation: how far the noise goes from the seed's to the
    variation seed's, in [0, 1]; steps: the seed of the noise of stochastic steps, None for the seed.
    """

    seed: int
    each: bool = False
    variation: float = 0.0
    variation_seed: int = 0
    steps: int | None = None

    def of_start(self, samples: Tensor, indices: list[int] | None) -> Tensor:
        """The starting noise, made on the CPU. Args: samples [B, ...]; indices, the LATENT's batch_index."""
        noise = self._drawn(samples, indices, self.seed, self.each and not self.variation)
        if not self.variation:
            return noise
        return slerp(noise, self._drawn(samples, indices, self.variation_seed, self.each), self.variation)

    def of_steps(self, batch: int, indices: list[int] | None) -> tuple[int, ...]:
        """Seeds of the noise of stochastic steps: one for all pictures, or one for each."""
        if not self.each:
            batch, indices = 1, None
        places = range(batch) if indices is None else indices
        if self.steps is not None:
            return (self.steps ^ STEP_NOISE,) * batch
        return tuple(_plus(self.seed, 0 if self.variation else place) ^ STEP_NOISE for place in places)

    def _drawn(self, samples: Tensor, indices: list[int] | None, seed: int, each: bool) -> Tensor:
        if not self.each:
            return comfy.sample.prepare_noise(samples, seed, indices)
        places = range(len(samples)) if indices is None else indices
        rows = [comfy.sample.prepare_noise(samples[:1], _plus(seed, place if each else 0)) for place in places]
        return torch.cat(rows)


def _plus(seed: int, place: int) -> int:
    return (seed + place) % (LAST_SEED + 1)
