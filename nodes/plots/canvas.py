"""The pack's plotting style and a Pillow canvas for it: ComfyUI ships no plotting library."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINES, EMPTY = "#ffffff", "#1d2129", "#6b7280", "#dfe3e8", "#f1f3f5"
# Distinguishable with any kind of colour vision (Okabe and Ito 2008).
ACTION_COLOURS = {"skip": "#d55e00", "disable": "#0072b2", "boost": "#009e73"}
DASHES: dict[str, tuple[int, int] | None] = {"solid": None, "dashed": (14, 7), "dotted": (3, 6)}  # on, off in pixels

MARGIN = 24
FINER = 3  # the plot is drawn this many times as large and reduced: Pillow's lines have hard edges


class Scaled:
    """Drawing in final pixels on a canvas that is FINER times as large."""

    def __init__(self, draw: ImageDraw.ImageDraw):
        self.draw = draw

    def text(self, place, text: str, colour: str, size: int, anchor: str = "la") -> None:
        self.draw.text((place[0] * FINER, place[1] * FINER), text, colour, font(size * FINER), anchor=anchor)

    def dot(self, place, colour: str, radius: float = 3.5) -> None:
        x, y = place
        box = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse([value * FINER for value in box], colour, PAPER, FINER)

    def box(self, corners, colour: str) -> None:
        self.draw.rectangle([round(value * FINER) for value in corners], colour)

    def path(self, points, colour: str, style: str = "solid", thickness: float = 2.0) -> None:
        scaled = [(x * FINER, y * FINER) for x, y in points]
        for start, end in _pieces(scaled, DASHES[style]):
            self.draw.line((*start, *end), colour, round(thickness * FINER))


def _pieces(points, dash: tuple[int, int] | None):
    """The pieces of a path that are drawn; dashes go on around its corners."""
    walked = 0.0
    for start, end in zip(points, points[1:], strict=False):
        if dash is None:
            yield start, end
            continue
        on, off = (value * FINER for value in dash)
        length = math.dist(start, end)
        place = 0.0
        while place < length:
            phase = (walked + place) % (on + off)
            step = min(length - place, on - phase if phase < on else on + off - phase)
            if phase < on:
                a, b = place / length, (place + step) / length
                yield (
                    (start[0] + a * (end[0] - start[0]), start[1] + a * (end[1] - start[1])),
                    (start[0] + b * (end[0] - start[0]), start[1] + b * (end[1] - start[1])),
                )
            place += max(step, 1e-6)
        walked += length


def font(size: int):
    return ImageFont.load_default(size=size)


def text_width(face, text: str) -> int:
    return math.ceil(face.getlength(text))


def as_image(drawn: Image.Image) -> torch.Tensor:
    """A drawing as a host IMAGE: [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.asarray(drawn).astype(np.float32) / 255)[None]
