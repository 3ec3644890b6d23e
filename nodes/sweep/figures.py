"""The contact sheet of a sweep, labelled on both axes."""

from __future__ import annotations

import math

from PIL import Image

from ..comfyui.frontend.progress import model_name, raise_if_cancelled
from ..plots.canvas import GREY
from ..plots.contact_sheet import Row, Tile, shortened
from .axes import Cell, Value
from .run import Sweep

LABEL = 240  # pixels: the widest label of a row


def draw_sheet(sweep: Sweep) -> Image.Image:
    """Draw all images so far, each with its distance to the first one.

    Raises: ComfyUI's interrupt if the run is cancelled.
    """
    columns = [_name(cell.x) for cell in sweep.cells[: sweep.columns]]
    rows = []
    for start in range(0, len(sweep.cells), sweep.columns):
        value = sweep.cells[start].y
        label = () if value is None else (shortened(value.text, LABEL, 16), value.axis)
        tiles = tuple(_tile(sweep, index) for index in range(start, start + sweep.columns))
        rows.append(Row(label, GREY, tiles))
    width, height = sweep.size
    subtitle = (
        f"{model_name(sweep.model)}, {_common(sweep.cells)}. Below each image: its distance to the first, in latents"
    )
    title = " by ".join(str(each.axis) for each in (sweep.cells[0].x, sweep.cells[0].y) if each is not None)
    aspect = width / height
    return sweep.sheet.draw(title, subtitle, columns, rows, aspect=aspect, size=sweep.tile, check=raise_if_cancelled)


def _name(value: Value | None) -> str:
    return "" if value is None else str(value)


def _common(cells) -> str:
    """The settings that all cells have."""
    chosen = {name: {getattr(cell.settings, name) for cell in cells} for name in ("steps", "cfg", "solver", "seed")}
    words = {"steps": "{:g} steps", "cfg": "cfg {:g}", "solver": "{}", "seed": "seed {}"}
    return ", ".join(words[name].format(*found) for name, found in chosen.items() if len(found) == 1)


def _tile(sweep: Sweep, index: int) -> Tile:
    cell: Cell = sweep.cells[index]
    seeds = [f"seed {cell.settings.seed}"] if sweep.seeds_differ else []
    if index >= len(sweep.finished):
        return Tile(lines=("", *seeds))  # as many lines, so that the sheet keeps its size while it fills
    latent, _ = sweep.distances[index]
    return Tile(sweep.thumbnails[index], (f"{latent:.3f}" if math.isfinite(latent) else "not finite", *seeds))
