"""A line plot of one or more panels with a shared legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .canvas import FAINT, FINER, INK, LINES, MARGIN, PAPER, Scaled, font

LEFT, INSET = 84, 18  # pixels: room for the labels of the y axis; distance of the lines from the panel's edges


@dataclass(frozen=True)
class Line:
    """One line of a plot: points (x, y), None where nothing was measured; style of DASHES."""

    label: str
    colour: str
    points: tuple[tuple[int, float | None], ...]
    style: str = "solid"


@dataclass(frozen=True)
class Panel:
    """One diagram of a plot."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]


def line_plot(title: str, subtitle: str, panels: Sequence[Panel], *, size: tuple[int, int] = (720, 440)) -> Image.Image:
    """Diagrams side by side with one legend below them; y begins at 0.

    Args: size of one diagram with its labels, in pixels.
    """
    width, height = size
    legend = _legend(panels[0].lines)
    wide, high = width * len(panels), MARGIN + 56 + height + 30 * len(legend) + MARGIN
    canvas = Image.new("RGB", (wide * FINER, high * FINER), PAPER)
    draw = Scaled(ImageDraw.Draw(canvas))
    draw.text((MARGIN, MARGIN), title, INK, 22)
    draw.text((MARGIN, MARGIN + 32), subtitle, FAINT, 14)
    for number, panel in enumerate(panels):
        draw_panel(draw, panel, (number * width, MARGIN + 56, width, height))
    for row, lines in enumerate(legend):
        for column, line in enumerate(lines):
            x, y = MARGIN + 72 + column * 210, MARGIN + 56 + height + 16 + 30 * row
            draw.path([(x, y), (x + 48, y)], line.colour, line.style)
            draw.dot((x + 24, y), line.colour)
            draw.text((x + 58, y), line.label, INK, 15, anchor="lm")
    return canvas.resize((wide, high), Image.Resampling.BOX)


def _legend(lines: Sequence[Line]) -> list[list[Line]]:
    """One row where every line has its own colour, else a row for each colour."""
    colours = list(dict.fromkeys(line.colour for line in lines))
    if len(colours) == len(lines):
        return [list(lines)]
    return [[line for line in lines if line.colour == colour] for colour in colours]


def draw_panel(draw: Scaled, panel: Panel, box: tuple[int, int, int, int]) -> None:
    """A diagram in a box of (left, top, width, height)."""
    left, top, right, bottom = box[0] + LEFT, box[1] + 36, box[0] + box[2] - MARGIN, box[1] + box[3] - 60
    xs = sorted({x for line in panel.lines for x, _ in line.points}) or [0]
    ys = [y for line in panel.lines for _, y in line.points if y is not None]
    marks = ticks(max(ys, default=1.0))
    first, last = xs[0], xs[-1]
    inset = INSET

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return left + inset + share * (right - left - 2 * inset), bottom - y / marks[-1] * (bottom - top)

    draw.text((left, top - 22), panel.title, INK, 17, anchor="lm")
    decimals = max(0, -math.floor(math.log10(marks[1]))) if marks[1] < 1 else 0
    for mark in marks:
        y = place(first, mark)[1]
        draw.path([(left, y), (right, y)], LINES if mark else FAINT, thickness=1)
        draw.text((left - 8, y), f"{mark:.{decimals}f}", FAINT, 14, anchor="rm")
    step = math.ceil(len(xs) / 20)
    for x in xs[::step]:
        draw.path([(place(x, 0)[0], bottom), (place(x, 0)[0], bottom + 5)], FAINT, thickness=1)
        draw.text((place(x, 0)[0], bottom + 16), str(x), FAINT, 14, anchor="mm")
    draw.text(((left + right) / 2, bottom + 42), panel.x_label, INK, 15, anchor="mm")
    _text_upwards(draw, (box[0] + 30, (top + bottom) / 2), panel.y_label)
    for line in panel.lines:
        known = [place(x, y) for x, y in line.points if y is not None]
        draw.path(known, line.colour, line.style)
        for point in known:
            draw.dot(point, line.colour)


def _text_upwards(draw: Scaled, centre: tuple[float, float], text: str) -> None:
    face = font(15 * FINER)
    box = face.getbbox(text)
    mask = Image.new("L", (int(box[2]) + 4, int(box[3]) + 8), 0)
    ImageDraw.Draw(mask).text((2, 2), text, 255, face)
    turned = mask.rotate(90, expand=True)
    corner = (round(centre[0] * FINER - turned.width / 2), round(centre[1] * FINER - turned.height / 2))
    draw.draw.bitmap(corner, turned, INK)


def ticks(most: float) -> list[float]:
    """4 to 8 round marks from 0 to at least `most`."""
    most = most if most > 0 and math.isfinite(most) else 1.0
    power = 10.0 ** math.floor(math.log10(most))
    step = next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if most / (factor * power) <= 7)
    return [round(index * step, 12) for index in range(math.ceil(most / step - 1e-9) + 1)]
