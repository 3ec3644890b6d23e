"""The contact sheet and the plot of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from PIL import Image

from ...mmdit_core.analysis import Cell, mean
from ..comfyui.families import Sections
from ..comfyui.frontend.progress import model_name, raise_if_cancelled
from ..plots.canvas import ACTION_COLOURS
from ..plots.contact_sheet import Row, Tile
from ..plots.line_plot import Limit, Line, Panel, line_plot
from .attributes import ALL
from .sweep import WINDOW_NAMES, Sweep

WINDOW_STYLES = {"whole": "solid", "early": "dashed", "late": "dotted"}


Suggested = Mapping[str, Collection[int]]  # operation -> blocks


def draw_sheet(sweep: Sweep, suggested: Suggested = MappingProxyType({})) -> Image.Image:
    """Draw all images so far, each with its latent and its image distance; the bar shows the latent distance.

    Args: suggested, the blocks whose images get a frame in the colour of their operation.

    Raises: ComfyUI's interrupt if the run is cancelled.
    """
    means = [value for found in sweep.distances.values() if (value := mean(found.latent)) is not None]
    largest = max(means, default=0.0) or 1.0
    rows = []
    for index, cells in enumerate(sweep.rows):
        baseline = Tile(sweep.thumbnails.get(None), ("unchanged",) if index == 0 else ())
        label = (_name(cells[0]), WINDOW_NAMES[cells[0].window])
        tiles = (baseline, *(_tile(sweep, cell, largest, suggested) for cell in cells))
        rows.append(Row(label, ACTION_COLOURS[cells[0].operation], tiles))
    blocks = [_block_name(block, sweep.sections) for block in sweep.settings.blocks]
    subtitle = _subtitle(sweep) + ". Below each image: distance to the baseline, latent and image"
    aspect = sweep.size[0] / sweep.size[1]
    return sweep.sheet.draw(
        "What each block does", subtitle, ["baseline", *blocks], rows, aspect=aspect, check=raise_if_cancelled
    )


def _block_name(block: int, sections: Sections) -> str:
    """A column's name: "block 3"; for a block of a second kind, with its number among them: "22 (s3)"."""
    first = sections[0][1] if sections else block + 1
    own = block - first
    for name, count in sections[1:]:
        if 0 <= own < count:
            return f"{block} ({name[0]}{own})"
        own -= count
    return f"block {block}"


def limits_of(report: Mapping[str, Any]) -> dict[str, float]:
    """What a nearly free skip has at most, by panel: "latent" and, with a judge, "loss"."""
    found = report.get("skip_list_by_judge") or report["skip_list"]
    limits = {} if found is None else found["limits"]
    return {name.removesuffix("_distance"): value for name, value in limits.items()}


def draw_plot(
    sweep: Sweep, suggested: Suggested = MappingProxyType({}), limits: Mapping[str, float] = MappingProxyType({})
) -> Image.Image:
    """Draw the distance of each block, in latents and in pixels, and the attributes if they are judged.

    Args: suggested, the blocks to mark; limits, as limits_of gives them.

    Raises: ComfyUI's interrupt if the run is cancelled.
    """

    def panel(title: str, y_label: str, value: Callable[..., float | None], limit: Limit | None = None) -> Panel:
        lines = tuple(
            Line(
                f"{_name(cells[0])}, {WINDOW_NAMES[cells[0].window]}",
                ACTION_COLOURS[cells[0].operation],
                tuple((cell.block, value(cell)) for cell in cells),
                WINDOW_STYLES[cells[0].window],
                tuple(cell.block for cell in _marked(cells, suggested)),
            )
            for cells in sweep.rows
        )
        return Panel(title, "block", y_label, lines, limit)

    colour, latent = ACTION_COLOURS["skip"], None
    if "latent" in limits:
        latent = Limit(limits["latent"], f"nearly free skip: at most {limits['latent']:g}", colour)
    panels = [
        panel("In latents", "distance to the baseline", lambda cell: mean(sweep.distances[cell].latent), latent),
        panel("In pixels", "distance to the baseline", lambda cell: mean(sweep.distances[cell].image)),
    ]
    if sweep.scores is not None:
        percent = sweep.scores.percent
        for column in sweep.scores.columns:
            baseline = percent(None, column)
            title = column.capitalize() + ("" if baseline is None else f" (baseline: {baseline:.0f}%)")
            limit = None
            if column == ALL and "loss" in limits and baseline is not None and baseline >= limits["loss"]:
                least = baseline - limits["loss"]
                limit = Limit(least, f"nearly free skip: at least {least:.0f}%", colour)
            panels.append(panel(title, "correct images, %", lambda cell, column=column: percent(cell, column), limit))
    return line_plot("How much each block changes the image", _subtitle(sweep), panels, check=raise_if_cancelled)


def _tile(sweep: Sweep, cell: Cell, largest: float, suggested: Suggested) -> Tile:
    found = sweep.distances[cell]
    if not found.latent:
        return Tile(lines=("", ""))  # two lines, so that the sheet keeps its size while it fills
    means = {"latent": mean(found.latent), "image": mean(found.image)}
    lines = tuple(f"{name} {'not finite' if value is None else f'{value:.3f}'}" for name, value in means.items())
    frame = ACTION_COLOURS[cell.operation] if cell in _marked((cell,), suggested) else ""
    return Tile(sweep.thumbnails[cell], lines, (means["latent"] or 0.0) / largest, frame)


def _marked(cells: Iterable[Cell], suggested: Suggested) -> list[Cell]:
    """The cells of suggested blocks, which are suggested for all steps."""
    return [cell for cell in cells if cell.window == "whole" and cell.block in suggested.get(cell.operation, ())]


def _name(cell: Cell) -> str:
    return f"boost x{cell.strength:g}" if cell.operation == "boost" else cell.operation


def _subtitle(sweep: Sweep) -> str:
    first, *more = sweep.settings.seeds
    seeds = f"{1 + len(more)} seeds from {first}" if more else f"seed {first}"
    prompts = "" if not sweep.listed else f", {len(sweep.positives)} prompts"
    return f"{model_name(sweep.model)}, {sweep.settings.steps} steps, cfg {sweep.settings.cfg:g}, {seeds}{prompts}"
