"""Colours, sizes and a canvas for the pack's plots, on Pillow: ComfyUI ships no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

WHITE, BLACK, GREY, GRID, EMPTY = "#ffffff", "#1d2129", "#6b7280", "#dfe3e8", "#f1f3f5"
# Distinguishable with any kind of colour vision. Source: Okabe and Ito 2008.
ACTION_COLOURS = {"skip": "#d55e00", "disable": "#0072b2", "boost": "#009e73", "prompt": "#cc79a7"}
DASHES: dict[str, tuple[int, int] | None] = {"solid": None, "dashed": (14, 7), "dotted": (3, 6)}  # on, off in pixels

MARGIN = 24  # pixels around a figure
HEAD = MARGIN + 56  # pixels above a plot's panels: title and subtitle
SCALE = 3  # supersampling: Pillow draws lines without anti-aliasing

Point = tuple[float, float]


class Canvas:
    """An image with a title and a subtitle to draw on in pixels [x, y]; `image` gives it without aliasing."""

    def __init__(self, width: int, height: int, title: str, subtitle: str):
        self.size = (width, height)
        self._image = Image.new("RGB", (width * SCALE, height * SCALE), WHITE)
        self._draw = ImageDraw.Draw(self._image)
        self.text((MARGIN, MARGIN), title, BLACK, 22)
        self.text((MARGIN, MARGIN + 32), subtitle, GREY, 14)

    @property
    def image(self) -> Image.Image:
        """What was drawn so far."""
        return self._image.resize(self.size, Image.Resampling.BOX)

    def text(self, at: Point, text: str, colour: str, size: int, anchor: str = "la") -> None:
        """Write text; anchor as Pillow's."""
        self._draw.text((at[0] * SCALE, at[1] * SCALE), text, colour, font(size * SCALE), anchor=anchor)

    def text_upwards(self, centre: Point, text: str, colour: str, size: int) -> None:
        """Write text that is read from bottom to top."""
        face = font(size * SCALE)
        box = face.getbbox(text)
        mask = Image.new("L", (int(box[2]) + 4, int(box[3]) + 8), 0)
        ImageDraw.Draw(mask).text((2, 2), text, 255, face)
        mask = mask.transpose(Image.Transpose.ROTATE_90)
        corner = (round(centre[0] * SCALE - mask.width / 2), round(centre[1] * SCALE - mask.height / 2))
        self._draw.bitmap(corner, mask, colour)

    def dot(self, at: Point, colour: str, radius: float = 3.5) -> None:
        """Draw a filled circle with a white outline."""
        box = (at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius)
        self._draw.ellipse([value * SCALE for value in box], colour, WHITE, SCALE)

    def ring(self, at: Point, colour: str, radius: float = 9.0) -> None:
        """Draw a circle around a point."""
        box = (at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius)
        self._draw.ellipse([value * SCALE for value in box], None, colour, 2 * SCALE)

    def box(self, corners: tuple[float, float, float, float], colour: str) -> None:
        """Fill a rectangle of (left, top, right, bottom)."""
        self._draw.rectangle([round(value * SCALE) for value in corners], colour)

    def path(self, points: Sequence[Point], colour: str, style: str = "solid", thickness: float = 2.0) -> None:
        """Draw a line through points; style, a key of DASHES."""
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        for start, end in _dashes(scaled, DASHES[style]):
            self._draw.line((*start, *end), colour, round(thickness * SCALE))


def _dashes(points: Sequence[Point], dash: tuple[int, int] | None) -> Iterator[tuple[Point, Point]]:
    """Cut a path into its visible segments; a dash continues around a corner."""
    if dash is None:
        yield from pairwise(points)
        return
    on, off = dash[0] * SCALE, dash[1] * SCALE
    before = 0.0  # length of the path up to this segment
    for start, end in pairwise(points):
        length, done = math.dist(start, end), 0.0
        while done < length:
            phase = (before + done) % (on + off)
            step = min(length - done, (on if phase < on else on + off) - phase)
            if phase < on:
                yield _between(start, end, done / length), _between(start, end, (done + step) / length)
            done += max(step, 1e-6)
        before += length


def _between(start: Point, end: Point, fraction: float) -> Point:
    return start[0] + fraction * (end[0] - start[0]), start[1] + fraction * (end[1] - start[1])


@lru_cache(maxsize=32)  # Pillow decodes the font's file for each size
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size=size)


def as_image(drawn: Image.Image) -> torch.Tensor:
    """Convert a figure to ComfyUI's IMAGE: [1, H, W, 3], float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(drawn).astype(np.float32) / 255)[None]
