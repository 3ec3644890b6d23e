"""One sweep: samples, decodes and measures its cells in order; finished cells are reused."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...mmdit_core.analysis import relative_l2
from ...mmdit_core.flow.schedules import sigmas
from ..comfyui import patching
from ..comfyui.fingerprint import fingerprint
from ..comfyui.frontend import messages
from ..comfyui.frontend.progress import Progress, raise_if_cancelled
from ..comfyui.loading.clip_vae import decode_image
from ..comfyui.run import sampling
from ..comfyui.run.solver import SolverRun
from ..plots.contact_sheet import ContactSheet, thumbnail, tile_size
from .axes import MOST_CELLS, Cell

SMALL, LARGE = 160, 512  # pixels: the longer side of a tile is the image's, within these


@dataclass(frozen=True)
class Finished:
    """A sampled cell: its latent on the CPU, and what ran, for the report."""

    latent: Tensor
    ran: dict[str, Any]


Kept = dict[Hashable, Finished]  # by what decides a cell besides the model, the prompts and the latent


@dataclass
class Sweep:
    """A sweep and its results so far.

    Fields: latent, fitted to the model, of one image; shift, the model's own; cells, in the order of the rows; columns,
    how many in a row; seeds_differ, True if each cell has its own; kept, the cells of earlier runs, to which this one
    adds; images, of all cells, [N, H, W, C] in [0, 1]; thumbnails, distances (latent, image) to the first cell and
    results of the finished cells; reused, the number of cells from earlier runs; sheet, as drawn so far.
    """

    model: Any
    positive: Any
    negative: Any
    latent: dict[str, Any]
    vae: Any
    shift: float
    cells: Sequence[Cell]
    columns: int
    seeds_differ: bool
    kept: Kept
    node_id: str | None
    images: Tensor | None = None
    thumbnails: list[Image.Image] = field(default_factory=list)
    distances: list[tuple[float, float]] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    reused: int = 0
    sheet: ContactSheet = field(default_factory=ContactSheet)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of an image in pixels; 1 x 1 before the first one."""
        return (1, 1) if self.images is None else (self.images.shape[2], self.images.shape[1])

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of an image of the contact sheet: smaller if there are many columns or rows."""
        width, height = self.size
        rows = len(self.cells) // self.columns
        return tile_size(max(self.columns, rows), width / height, min(LARGE, max(SMALL, width, height)))

    def run(self, draw: Callable[[], Image.Image]) -> None:
        """Make all cells. Args: draw, makes the preview image. Raises: ComfyUI's interrupt if the run is cancelled."""
        keys = [self._key(cell) for cell in self.cells]
        self._forget(set(keys))
        progress = Progress(sum(cell.settings.steps for cell in self.cells), self.node_id)
        for cell, key in zip(self.cells, keys, strict=True):
            if key in self.kept:
                self.reused += 1
            else:
                self.kept[key] = self._sample(cell, progress)
                raise_if_cancelled()
            self._add(self.kept[key])
            progress.finish(cell.settings.steps, draw)

    def _key(self, cell: Cell) -> Hashable:
        """What decides a cell besides what is common to all."""
        model = self._controlled(cell)
        return fingerprint([cell.settings, patching.controls_of(model)])

    def _forget(self, wanted: set[Hashable]) -> None:
        """Drop the oldest kept cells that this sweep does not have, so that at most MOST_CELLS are in memory."""
        others = [key for key in self.kept if key not in wanted]
        for key in others[: max(0, len(others) + len(wanted) - MOST_CELLS)]:
            del self.kept[key]

    def _controlled(self, cell: Cell):
        """The MODEL with the controls of a cell."""
        return self.model if cell.controls is None else patching.with_last_controls(self.model, cell.controls)

    def _sample(self, cell: Cell, progress: Progress) -> Finished:
        number = len(self.finished) + 1
        words = f"{number} of {len(self.cells)}: {cell.words}, seed {cell.settings.seed}"
        messages.show_text(self.node_id, words)
        chosen, model = cell.settings, self._controlled(cell)
        shift = chosen.shift or self.shift
        model = sampling.with_shift(model, shift) if chosen.shift else model.clone()
        patching.prepare(model)
        counted = iter(range(chosen.steps))  # an adaptive solver may take more

        def step(*_: Any) -> None:
            if next(counted, None) is not None:
                progress.step()

        samples, run = sampling.run_flow(
            model,
            self.positive,
            self.negative,
            sampling.prepare(self.latent, chosen.seed),
            seed=chosen.seed,
            cfg=chosen.cfg,
            solver=chosen.solver,
            sigmas=sigmas(chosen.steps, chosen.schedule, shift, denoise=chosen.denoise),
            callback=step,
        )
        return Finished(samples.cpu(), _ran(model, shift, run))

    def _add(self, made: Finished) -> None:
        """Decode and measure a cell."""
        image, index = decode_image(self.vae, made.latent), len(self.finished)
        if self.images is None:
            self.images = torch.zeros(len(self.cells), *image.shape)
        self.images[index] = image.nan_to_num()
        first = (self.finished or [made])[0].latent
        self.distances.append((relative_l2(made.latent, first), relative_l2(image, self.images[0])))
        self.thumbnails.append(thumbnail(self.images[index], self.tile))
        self.finished.append(made)


def _ran(model, shift: float, run: SolverRun) -> dict[str, Any]:
    """What ran, for the report."""
    counts = run.counts or patching.Run()
    calls, blocks, cache = counts.calls, counts.block_calls, counts.step_cache
    return {
        "model_calls": calls.calls,
        "positive_rows": calls.rows["positive"],
        "negative_rows": calls.rows["negative"],
        "predictions": run.predictions,
        "shift": round(shift, 6),
        "controls": [control.to_dict() for control in patching.controls_of(model)],
        "block_calls": {**asdict(blocks), "words": str(blocks)} if blocks.total else None,
        "speed_plan": None if cache is None else {"work": round(cache.count.work, 4)},
        "seconds": round(math.fsum(run.seconds), 4),
    }
