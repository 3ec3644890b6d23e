"""One sweep over blocks: samples, decodes and measures one image for each cell and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from ...mmdit_core.analysis import OPERATIONS, WINDOWS, Cell, Distances, plan, relative_l2
from ...mmdit_core.flow.schedules import sigmas
from ..comfyui import patching
from ..comfyui.families import Sections
from ..comfyui.frontend import messages
from ..comfyui.frontend.progress import Progress
from ..comfyui.loading.clip_vae import decode_image
from ..comfyui.run import sampling
from ..plots.contact_sheet import fitted, tile_size
from .attributes import Scores

WINDOW_NAMES = {"whole": "all steps", "early": "first half", "late": "second half"}
Latents = dict[tuple[int, Cell | None], torch.Tensor]  # (seed, cell) -> latent on the CPU; cell None is the baseline


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The settings of a sweep, as the report lists them."""

    operations: tuple[str, ...]
    blocks: tuple[int, ...]
    boost_strength: float
    seeds: tuple[int, ...]
    steps: int
    cfg: float
    solver: str = "euler"
    schedule: str = "linear"
    shift: float
    early_late: bool
    controls_on_the_model: tuple[dict[str, Any], ...]


@dataclass
class Sweep:
    """A sweep and its results so far.

    Fields: latent, fitted to the model; latents, what an earlier run finished, to which this one adds.
    """

    model: Any
    positive: Any
    negative: Any
    latent: dict[str, Any]
    vae: Any
    sections: Sections
    settings: SweepSettings
    latents: Latents
    node_id: str | None
    scores: Scores | None = None
    size: tuple[int, int] = (1, 1)  # width and height of a decoded image
    thumbnails: dict[Cell | None, Image.Image] = field(default_factory=dict)  # of the first seed

    def __post_init__(self) -> None:
        chosen = self.settings
        cells = plan(chosen.operations, chosen.blocks, strength=chosen.boost_strength, early_late=chosen.early_late)
        self.distances = {cell: Distances() for cell in cells}

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The cells of each operation and window, halves after their whole."""

        def order(cell: Cell) -> tuple[int, int]:
            return OPERATIONS.index(cell.operation), list(WINDOWS).index(cell.window)

        return [tuple(cells) for _, cells in groupby(sorted(self.distances, key=order), order)]

    def run(self, draw: Callable[[], Image.Image]) -> None:
        """Sample and measure all cells. Args: draw, makes the preview image."""
        seeds, steps = self.settings.seeds, self.settings.steps
        progress = Progress(len(seeds) * (len(self.distances) + 1) * steps, self.node_id)
        for seed in seeds:
            baseline = self._sample(seed, None, progress)
            for cell in (None, *self.distances):
                latent = self._sample(seed, cell, progress)
                image = decode_image(self.vae, latent)
                if cell is None:
                    baseline_image, self.size = image, (image.shape[1], image.shape[0])
                else:
                    self.distances[cell].latent.append(relative_l2(latent, baseline))
                    self.distances[cell].image.append(relative_l2(image, baseline_image))
                if self.scores is not None:
                    self.scores.add(cell, image)
                if seed == seeds[0]:
                    self.thumbnails[cell] = self._thumbnail(image)
                progress.finish(steps, draw)

    def _sample(self, seed: int, cell: Cell | None, progress: Progress) -> torch.Tensor:
        key = (seed, cell)
        if key not in self.latents:
            messages.show_text(self.node_id, _description(cell, seed))
            settings = self.settings
            samples = sampling.sample_flow(
                self.model if cell is None else patching.attach(self.model, [cell.control()]),
                self.positive,
                self.negative,
                sampling.prepare(self.latent, seed),
                seed=seed,
                cfg=settings.cfg,
                solver=settings.solver,
                sigmas=sigmas(settings.steps, settings.schedule, settings.shift),
                callback=lambda *_: progress.step(),
            )
            self.latents[key] = samples.cpu()
        return self.latents[key]

    def _thumbnail(self, image: torch.Tensor) -> Image.Image:
        rgb = (image[..., :3].nan_to_num().clamp(0, 1) * 255).round().byte().numpy()
        return fitted(Image.fromarray(rgb), tile_size(1 + len(self.settings.blocks), self.size[0] / self.size[1]))


def _description(cell: Cell | None, seed: int) -> str:
    what = "baseline" if cell is None else f"{cell.operation} block {cell.block}, {WINDOW_NAMES[cell.window]}"
    return f"{what}, seed {seed}"
