"""A drawing of a run: its noise levels, step by step, and below them when guidance and block controls act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image, ImageDraw

from .canvas import FAINT, FINER, INK, LINES, MARGIN, PAPER, Scaled
from .line_plot import INSET, LEFT, Line, Panel, draw_panel

WIDTH, PANEL, BAND, BAR = 720, 380, 42, 14  # pixels
MOST_POINTS = 200  # of a curve; more would lie on each other
HEAD = MARGIN + 56
BLUE = "#0072b2"


@dataclass(frozen=True)
class Band:
    """Something that acts in some of the steps; shares: for each step, from 0 (not at all) to 1."""

    label: str
    colour: str
    shares: tuple[float, ...]


def draw_curve(title: str, subtitle: str, levels: Sequence[float], first: int, bands: Sequence[Band]) -> Image.Image:
    """Args: levels [steps + 1], of steps that count from `first`; bands with a share for each of these steps."""
    high = HEAD + PANEL + BAND * len(bands) + MARGIN
    canvas = Image.new("RGB", (WIDTH * FINER, high * FINER), PAPER)
    draw = Scaled(ImageDraw.Draw(canvas))
    draw.text((MARGIN, MARGIN), title, INK, 22)
    draw.text((MARGIN, MARGIN + 32), subtitle, FAINT, 14)
    every = -(-len(levels) // MOST_POINTS) or 1
    points = tuple(enumerate(levels, first))
    points = (*points[:-1:every], *points[-1:])
    draw_panel(draw, Panel("Noise level", "step", "sigma", (Line("sigma", BLUE, points),)), (0, HEAD, WIDTH, PANEL))
    left, right = LEFT + INSET, WIDTH - MARGIN - INSET
    for row, band in enumerate(bands):
        _draw_band(draw, band, left, right, HEAD + PANEL + BAND * row)
    return canvas.resize((WIDTH, high), Image.Resampling.BOX)


def _draw_band(draw: Scaled, band: Band, left: float, right: float, top: float) -> None:
    """A band's label, and under it a bar over each step that it acts in, as high as its share."""
    draw.text((left, top + 8), band.label, INK, 14, anchor="lm")
    bottom = top + 20 + BAR
    draw.path([(left, bottom), (right, bottom)], LINES, thickness=1)
    step = (right - left) / max(1, len(band.shares))
    place = left
    for share, alike in groupby(band.shares):
        end = place + step * sum(1 for _ in alike)
        if share > 0:
            draw.box((place, bottom - max(2.0, BAR * min(1.0, share)), end, bottom), band.colour)
        place = end
