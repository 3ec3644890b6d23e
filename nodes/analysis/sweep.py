"""One sweep over blocks: samples, decodes and measures one image for each prompt, seed and cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ..comfyui.frontend.progress import Progress, raise_if_cancelled
from ..comfyui.loading.clip_vae import decode_image
from ..comfyui.run import sampling
from ..plots.contact_sheet import ContactSheet, thumbnail, tile_size
from .attributes import Right, Scores

WINDOW_NAMES = {"whole": "all steps", "early": "first half", "late": "second half"}
Latents = dict[tuple[int, Cell | None], torch.Tensor]  # (seed, cell) -> latent on the CPU; cell None is the baseline
LIMIT = 1 << 30  # bytes of all latents that are kept, besides those of the first seed


@dataclass(frozen=True)
class Measure:
    """What is kept of an image: its distances to the baseline, 0 for the baseline's own, and what the judge found."""

    latent: float
    image: float
    right: Right | None


Measures = dict[tuple[int, Cell | None], Measure]  # of one prompt


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

    Fields: positives, the prompts; latent, fitted to the model; measures of each prompt and latents of the first one,
    which an earlier run finished and to which this one adds; listed, whether the prompts are of a list. The first
    prompt's images of the first seed are shown, and always kept as latents; of a single prompt, up to LIMIT of the
    others are kept, too, for another VAE or judge.
    """

    model: Any
    positives: Sequence[Any]
    negative: Any
    latent: dict[str, Any]
    vae: Any
    sections: Sections
    settings: SweepSettings
    latents: Latents
    measures: Sequence[Measures]
    listed: bool
    node_id: str | None
    scores: Scores | None = None
    size: tuple[int, int] = (1, 1)  # width and height of a decoded image
    thumbnails: dict[Cell | None, Image.Image] = field(default_factory=dict)  # of the first prompt's first seed
    sheet: ContactSheet = field(default_factory=ContactSheet)  # as drawn so far

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
        images = len(self.positives) * len(self.settings.seeds) * (len(self.distances) + 1)
        progress = Progress(images * self.settings.steps, self.node_id)
        for prompt in range(len(self.positives)):
            for seed in self.settings.seeds:
                self._compare(prompt, seed, progress, draw)

    def _compare(self, prompt: int, seed: int, progress: Progress, draw: Callable[[], Image.Image]) -> None:
        """Measure all cells with one prompt and seed. An unfinished one samples its baseline again."""
        shown = self._is_shown(prompt, seed)
        finished = {} if shown else self.measures[prompt]
        cells = (None, *self.distances)
        if any((seed, cell) not in finished for cell in cells):
            baseline = self._sample(prompt, seed, None, progress)
            baseline_image = decode_image(self.vae, baseline)
        if shown:
            self.size = (baseline_image.shape[1], baseline_image.shape[0])
        for cell in cells:
            if (seed, cell) not in finished:
                latent = self._sample(prompt, seed, cell, progress) if cell is not None else baseline
                image = decode_image(self.vae, latent) if cell is not None else baseline_image
                raise_if_cancelled()
                right = None if self.scores is None else self.scores.judge(image, prompt)
                distances = (0.0, 0.0)
                if cell is not None:
                    distances = (relative_l2(latent, baseline), relative_l2(image, baseline_image))
                finished[seed, cell] = Measure(*distances, right)
                if shown:
                    self.thumbnails[cell] = thumbnail(image, self._tile)
            self._count(cell, finished[seed, cell], prompt)
            progress.finish(self.settings.steps, draw)

    def _is_shown(self, prompt: int, seed: int) -> bool:
        return (prompt, seed) == (0, self.settings.seeds[0])

    def _count(self, cell: Cell | None, measure: Measure, prompt: int) -> None:
        if cell is not None:
            self.distances[cell].latent.append(measure.latent)
            self.distances[cell].image.append(measure.image)
        if self.scores is not None and measure.right is not None:
            self.scores.note(cell, measure.right, prompt)

    def _sample(self, prompt: int, seed: int, cell: Cell | None, progress: Progress) -> torch.Tensor:
        if (seed, cell) in self.latents and prompt == 0:
            return self.latents[seed, cell]
        messages.show_text(self.node_id, self._description(prompt, seed, cell))
        settings = self.settings
        samples = sampling.sample_flow(
            self.model if cell is None else patching.attach(self.model, [cell.control()]),
            self.positives[prompt],
            self.negative,
            sampling.prepare(self.latent, seed),
            seed=seed,
            cfg=settings.cfg,
            solver=settings.solver,
            sigmas=sigmas(settings.steps, settings.schedule, settings.shift),
            callback=lambda *_: progress.step(),
        ).cpu()
        if self._is_shown(prompt, seed) or (not self.listed and self._has_room(samples)):
            self.latents[seed, cell] = samples
        return samples

    def _has_room(self, samples: torch.Tensor) -> bool:
        return (len(self.latents) + 1) * samples.nbytes <= LIMIT

    def _description(self, prompt: int, seed: int, cell: Cell | None) -> str:
        what = "baseline" if cell is None else f"{cell.operation} block {cell.block}, {WINDOW_NAMES[cell.window]}"
        several = "" if not self.listed else f", prompt {prompt + 1} of {len(self.positives)}"
        return f"{what}{several}, seed {seed}"

    @property
    def _tile(self) -> tuple[int, int]:
        return tile_size(1 + len(self.settings.blocks), self.size[0] / self.size[1])
