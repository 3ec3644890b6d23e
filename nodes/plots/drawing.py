"""A labelled contact sheet and a line plot, with Pillow alone: ComfyUI ships no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINES, EMPTY = "#ffffff", "#1d2129", "#6b7280", "#dfe3e8", "#f1f3f5"
# Told apart by people with any kind of colour vision (Okabe and Ito), one for each operation.
COLOURS = {"skip": "#d55e00", "disable": "#0072b2", "boost": "#009e73"}
DASHES: dict[str, tuple[int, int] | None] = {"solid": None, "dashed": (14, 7), "dotted": (3, 6)}  # on, off in pixels

MARGIN = 24
GAP = 8
LEFT, INSET = 84, 18  # of a diagram: room for the marks of its y axis, and what its lines keep off its edges
FINER = 3  # the plot is drawn this many times as large and reduced: Pillow's lines have hard edges


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: lines printed under it, and a share in [0, 1] shown as a bar's length."""

    picture: Image.Image | None = None
    lines: tuple[str, ...] = ()
    share: float = 0.0


@dataclass(frozen=True)
class Row:
    """A row of a sheet: its label, a colour for it, and its tiles, one for each column."""

    label: tuple[str, ...]
    colour: str
    tiles: tuple[Tile, ...]


def tile_size(columns: int, aspect: float) -> tuple[int, int]:
    """Width and height of a sheet's pictures: smaller where there are many, never too narrow for what is under them."""
    side = max(96, min(160, 4096 // max(1, columns)))
    return (side, max(1, round(side / aspect))) if aspect >= 1 else (max(88, round(side * aspect)), side)


def contact_sheet(
    title: str, subtitle: str, columns: Sequence[str], rows: Sequence[Row], *, aspect: float = 1.0
) -> Image.Image:
    """Pictures in rows and columns, with labels on both sides.

    Args: aspect, width by height of the pictures. Tiles without a picture are drawn empty.
    """
    width, height = tile_size(len(columns), aspect)
    large, medium, small = font(22), font(16), font(14)
    under = 8 + 18 * max((len(tile.lines) for row in rows for tile in row.tiles), default=0)
    left = MARGIN + 14 + max((_width(medium, part) for row in rows for part in row.label), default=0) + 14
    top = MARGIN + 64 + 26
    row_height = height + under + 14
    wide = max(left + len(columns) * (width + GAP) - GAP, 2 * MARGIN + _width(large, title)) + MARGIN
    wide = max(wide, MARGIN * 2 + _width(small, subtitle))
    sheet = Image.new("RGB", (wide, top + len(rows) * row_height + MARGIN - 14), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, INK, large)
    draw.text((MARGIN, MARGIN + 32), subtitle, FAINT, small)
    for number, label in enumerate(columns):
        draw.text((left + number * (width + GAP) + width / 2, top - 14), label, INK, medium, anchor="mm")
    for index, row in enumerate(rows):
        y = top + index * row_height
        draw.rectangle((MARGIN, y, MARGIN + 4, y + height - 1), row.colour)
        for line, part in enumerate(row.label):
            place = (MARGIN + 14, y + height / 2 + 20 * (line - (len(row.label) - 1) / 2))
            draw.text(place, part, INK if line == 0 else FAINT, medium, anchor="lm")
        for number, tile in enumerate(row.tiles):
            _draw_tile(sheet, draw, tile, row.colour, (left + number * (width + GAP), y, width, height), small)
    return sheet


def fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _draw_tile(sheet, draw, tile: Tile, colour: str, box: tuple[int, int, int, int], small) -> None:
    x, y, width, height = box
    if tile.picture is None:
        draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
    else:
        sheet.paste(fitted(tile.picture, (width, height)), (x, y))
    if tile.share > 0:
        draw.rectangle((x, y + height + 3, x + width - 1, y + height + 5), LINES)
        draw.rectangle((x, y + height + 3, x + max(1, round(width * min(1.0, tile.share))) - 1, y + height + 5), colour)
    for line, text in enumerate(tile.lines):
        draw.text((x + width / 2, y + height + 17 + 18 * line), text, INK if line == 0 else FAINT, small, anchor="mm")


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


def font(size: int):
    return ImageFont.load_default(size=size)


def _width(face, text: str) -> int:
    return math.ceil(face.getlength(text))


def as_image(drawn: Image.Image) -> torch.Tensor:
    """A drawing as a host IMAGE: [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.asarray(drawn).astype(np.float32) / 255)[None]
