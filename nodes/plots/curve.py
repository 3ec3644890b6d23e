"""The sigmas of a run, step by step, and the steps in which guidance and block controls act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from PIL import Image

from .canvas import BLACK, GRID, HEAD, MARGIN, Canvas
from .line_plot import INSET, LEFT, Line, Panel, draw_panel

WIDTH, PANEL, BAND, BAR = 720, 380, 42, 14  # pixels
MAX_POINTS = 200  # of the curve; more would overlap
BLUE = "#0072b2"


@dataclass(frozen=True)
class Band:
    """One effect on the steps: strengths, one for each step, in [0, 1]; 0 = no effect."""

    label: str
    colour: str
    strengths: tuple[float, ...]


def draw_curve(title: str, subtitle: str, sigmas: Sequence[float], first: int, bands: Sequence[Band]) -> Image.Image:
    """Draw the curve and, for each band, its label and a bar over each step, as high as the band's strength.

    Args: sigmas [steps + 1], the first of them of step `first`.
    """
    canvas = Canvas(WIDTH, HEAD + PANEL + BAND * len(bands) + MARGIN, title, subtitle)
    points = tuple(enumerate(sigmas, first))
    points = (*points[: -1 : -(-len(sigmas) // MAX_POINTS) or 1], *points[-1:])
    draw_panel(canvas, Panel("Noise level", "step", "sigma", (Line("sigma", BLUE, points),)), (0, HEAD, WIDTH, PANEL))
    left, right = LEFT + INSET, WIDTH - MARGIN - INSET
    for row, band in enumerate(bands):
        top = HEAD + PANEL + BAND * row
        bottom = top + 20 + BAR
        canvas.text((left, top + 8), band.label, BLACK, 14, anchor="lm")
        canvas.path([(left, bottom), (right, bottom)], GRID, thickness=1)
        step = (right - left) / max(1, len(band.strengths))
        start: float = left
        for strength, equal in groupby(band.strengths):
            end = start + step * sum(1 for _ in equal)
            if strength > 0:
                canvas.box((start, bottom - max(2.0, BAR * min(1.0, strength)), end, bottom), band.colour)
            start = end
    return canvas.image
