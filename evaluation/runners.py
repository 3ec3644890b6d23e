"""Where units are sampled: in this process, or by workers of a Ray cluster (`cluster.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from .engine.renderer import About, Renderer
from .prompts import Prompt
from .study.cells import Unit

Images = np.ndarray  # uint8 [B, H, W, 3]


class Runner(Protocol):
    """Samples units, in any order."""

    def about(self) -> About:
        """What it samples."""
        ...

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Images]]:
        """Each unit with its images, as they are finished."""
        ...


def sample(renderer: Renderer, prompts: Sequence[Prompt], unit: Unit) -> Images:
    """The images of a unit."""
    first, end = unit.prompts
    texts = [prompt.text for prompt in prompts[first:end]]
    return renderer.render(texts, first, unit.seed, [] if unit.control is None else [unit.control])


class InProcess:
    """Samples one unit after the other in this process."""

    def __init__(self, renderer: Renderer, prompts: Sequence[Prompt]):
        self.renderer, self.prompts = renderer, prompts

    def about(self) -> About:
        """What it samples."""
        return self.renderer.about()

    def run(self, units: Sequence[Unit]) -> Iterator[tuple[Unit, Images]]:
        """Each unit with its images. Units of the same prompts follow each other: their texts are encoded once."""
        for unit in sorted(units, key=lambda unit: (unit.prompts, unit.seed)):
            yield unit, sample(self.renderer, self.prompts, unit)
