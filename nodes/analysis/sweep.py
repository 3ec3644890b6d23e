"""One sweep over blocks: samples what is missing, decodes, measures, draws as it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from ...mmdit_core import analysis
from ...mmdit_core.analysis import Cell, Distances
from ...mmdit_core.flow.schedules import sigmas
from ..comfyui import controls
from ..comfyui.frontend import messages as ui
from ..comfyui.frontend import progress
from ..comfyui.run import sampling
from ..plots.canvas import ACTION_COLOURS
from ..plots.contact_sheet import Row, Tile, contact_sheet, fitted, tile_size
from ..plots.line_plot import Line, Panel, line_plot
from .attributes import Scores

WINDOW_NAMES = {"whole": "all steps", "early": "first half", "late": "second half"}
WINDOW_STYLES = {"whole": "solid", "early": "dashed", "late": "dotted"}


class Kept:
    """Finished latents, on the CPU, for as long as everything else that decides them is the same."""

    def __init__(self) -> None:
        self.decided_by: Any = None
        self.latents: dict[tuple[int, Cell | None], torch.Tensor] = {}

    def open(self, decided_by: Any) -> None:
        if self.decided_by is None or self.decided_by != decided_by:
            self.latents.clear()
        self.decided_by = decided_by


class Sweep:
    """The cells of a plan, sampled with the settings of a report; `distances` and the drawings follow."""

    def __init__(
        self,
        model,
        positive,
        negative,
        latent,
        vae,
        cells: Sequence[Cell],
        settings,
        kept: Kept,
        node_id,
        scores: Scores | None = None,
    ):
        self.model, self.positive, self.negative = model, positive, negative
        self.latent, self.vae, self.cells, self.settings, self.kept = latent, vae, cells, settings, kept
        self.node_id, self.scores = node_id, scores
        self.name = progress.model_name(model)
        self.double, _ = controls.block_counts(model)
        self.steps, self.seeds = settings["steps"], settings["seeds"]
        self.levels = sigmas(self.steps, settings["schedule"], settings["shift"])
        self.distances = {cell: Distances() for cell in cells}
        self.shown: dict[Cell, Image.Image] = {}  # the first seed's pictures, as small as the sheet shows them
        self.size = (1, 1)  # of a picture as the VAE makes it
        self.untouched: Image.Image | None = None

    def run(self) -> None:
        bar = progress.Progress(len(self.seeds) * (len(self.cells) + 1) * self.steps, self.node_id)
        for seed in self.seeds:
            baseline = self._latent(seed, None, bar)
            untouched = progress.decode_image(self.vae, baseline)
            if seed == self.seeds[0]:
                self.size = (untouched.shape[1], untouched.shape[0])
                self.untouched = self._small(untouched)
            self._score(None, untouched)
            bar.finish(self.steps, self.sheet)
            for cell in self.cells:
                latent = self._latent(seed, cell, bar)
                decoded = progress.decode_image(self.vae, latent)
                image_distance = analysis.relative_l2(decoded, untouched)
                self.distances[cell].latent.append(analysis.relative_l2(latent, baseline))
                self.distances[cell].image.append(image_distance)
                self._score(cell, decoded)
                if seed == self.seeds[0]:
                    self.shown[cell] = self._small(decoded)
                bar.finish(self.steps, self.sheet)

    def _score(self, cell: Cell | None, picture: torch.Tensor) -> None:
        if self.scores is not None:
            self.scores.add(cell, picture)

    def _latent(self, seed: int, cell: Cell | None, bar: progress.Progress) -> torch.Tensor:
        key = (seed, cell)
        if key not in self.kept.latents:
            ui.show_text(self.node_id, _doing(cell, seed))
            model = self.model if cell is None else controls.attach(self.model, [cell.control()], None)
            samples = sampling.sample_flow(
                model,
                self.positive,
                self.negative,
                sampling.prepare(self.model, self.latent, seed),
                seed=seed,
                cfg=self.settings["cfg"],
                solver=self.settings["solver"],
                sigmas=self.levels,
                callback=lambda *_: bar.step(),
            )
            self.kept.latents[key] = samples.cpu()
        return self.kept.latents[key]

    def _small(self, picture: torch.Tensor) -> Image.Image:
        size = tile_size(1 + len(self.settings["blocks"]), self.size[0] / self.size[1])
        return fitted(_pillow(picture), size)

    def _rows(self) -> list[tuple[str, str]]:
        """The sweep's operations and windows, halves below their whole."""
        found = {(cell.operation, cell.window) for cell in self.cells}
        return [(o, w) for o in analysis.OPERATIONS for w in analysis.WINDOWS if (o, w) in found]

    def _cell(self, operation: str, window: str, block: int) -> Cell:
        strength = self.settings["boost_strength"] if operation == "boost" else 1.0
        return Cell(operation, block, window, strength)

    def _label(self, operation: str) -> str:
        return f"boost x{self.settings['boost_strength']:g}" if operation == "boost" else operation

    def _about(self) -> str:
        seeds = f"seed {self.seeds[0]}" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds from {self.seeds[0]}"
        return f"{self.name}, {self.steps} steps, cfg {self.settings['cfg']:g}, {seeds}"

    def sheet(self) -> Image.Image:
        """All pictures so far. Under each: its distance in latents, then in pixels; the bar is the first of them."""
        known = [mean for found in self.distances.values() if (mean := analysis.mean(found.latent)) is not None]
        most = max(known, default=0.0) or 1.0
        blocks = self.settings["blocks"]
        rows = []
        for number, (operation, window) in enumerate(self._rows()):
            tiles = [Tile(self.untouched, ("untouched",) if number == 0 else ())]
            tiles += [self._tile(self._cell(operation, window, block), most) for block in blocks]
            label = (self._label(operation), WINDOW_NAMES[window])
            rows.append(Row(label, ACTION_COLOURS[operation], tuple(tiles)))
        columns = ["baseline", *(_block_name(block, self.double) for block in blocks)]
        about = self._about() + ". Under each: distance to the baseline, latent and image"
        aspect = self.size[0] / self.size[1]
        return contact_sheet("What each block does", about, columns, rows, aspect=aspect)

    def _tile(self, cell: Cell, most: float) -> Tile:
        found = self.distances[cell]
        if not found.latent:
            return Tile(lines=("", ""))  # the sheet keeps its size as it fills
        means = analysis.mean(found.latent), analysis.mean(found.image)
        lines = tuple(
            f"{name} {value:.3f}" if value is not None else f"{name} broke"
            for name, value in zip(("latent", "image"), means, strict=True)
        )
        return Tile(self.shown[cell], lines, bar=(means[0] or 0.0) / most)

    def plot(self) -> Image.Image:
        def lines(space: str) -> tuple[Line, ...]:
            return tuple(
                Line(
                    f"{self._label(operation)}, {WINDOW_NAMES[window]}",
                    ACTION_COLOURS[operation],
                    tuple(
                        (block, analysis.mean(getattr(self.distances[self._cell(operation, window, block)], space)))
                        for block in self.settings["blocks"]
                    ),
                    WINDOW_STYLES[window],
                )
                for operation, window in self._rows()
            )

        titles = {"latent": "In latents", "image": "In pixels"}
        panels = [Panel(titles[s], "block", "distance to the baseline", lines(s)) for s in titles]
        if self.scores is not None:
            panels += [self._attribute_panel(column) for column in self.scores.columns]
        return line_plot("How far each block moves the picture", self._about(), panels)

    def _attribute_panel(self, column: str) -> Panel:
        """How many of the seeds' pictures are right in one attribute, with the untouched ones' share in the title."""
        assert self.scores is not None
        lines = [
            Line(
                f"{self._label(operation)}, {WINDOW_NAMES[window]}",
                ACTION_COLOURS[operation],
                tuple(
                    (block, self.scores.percent(self._cell(operation, window, block), column))
                    for block in self.settings["blocks"]
                ),
                WINDOW_STYLES[window],
            )
            for operation, window in self._rows()
        ]
        untouched = self.scores.percent(None, column)
        title = column.capitalize() + ("" if untouched is None else f" (untouched: {untouched:.0f}%)")
        return Panel(title, "block", "pictures that are right, %", tuple(lines))


def _doing(cell: Cell | None, seed: int) -> str:
    if cell is None:
        return f"the untouched picture, seed {seed}"
    return f"{cell.operation} block {cell.block}, {WINDOW_NAMES[cell.window]}, seed {seed}"


def _block_name(block: int, double: int) -> str:
    return f"block {block}" if block < double else f"{block} (s{block - double})"


def _pillow(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture[..., :3].nan_to_num().clamp(0, 1) * 255).round().byte().numpy())
