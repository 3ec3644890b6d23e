"""A labelled contact sheet: images in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from .canvas import BLACK, EMPTY, GREY, GRID, MARGIN, WHITE, font

GAP = 8  # pixels between columns
TOP = MARGIN + 64 + 26  # pixels above the first row: title, subtitle and the columns' names


@dataclass(frozen=True)
class Tile:
    """One image of a sheet, or an empty tile; lines of text under it; a bar of a length in [0, 1] of its width."""

    image: Image.Image | None = None
    lines: tuple[str, ...] = ()
    bar: float = 0.0


@dataclass(frozen=True)
class Row:
    """One row of a sheet: label, one line each; colour of its bars; one tile for each column."""

    label: tuple[str, ...]
    colour: str
    tiles: tuple[Tile, ...]


def tile_size(columns: int, aspect: float, most: int = 160) -> tuple[int, int]:
    """Choose the images' width and height: small if there are many, wide enough for the text under them.

    Args: aspect, width / height of the images; most, of the longer side.
    """
    side = max(96, min(most, 4096 // max(1, columns)))
    return (side, max(1, round(side / aspect))) if aspect >= 1 else (max(88, round(side * aspect)), side)


def thumbnail(image: Tensor, size: tuple[int, int]) -> Image.Image:
    """A decoded image [H, W, C] in [0, 1], at least three channels, as a tile of a sheet. Args: size, of the tile."""
    rgb = (image[..., :3].nan_to_num().clamp(0, 1) * 255).round().byte().numpy()
    return fitted(Image.fromarray(rgb), size)


def contact_sheet(
    title: str,
    subtitle: str,
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    aspect: float = 1.0,
    size: tuple[int, int] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Image.Image:
    """Draw a sheet.

    Args: columns, their names; aspect, width / height of the images; size, width and height of a tile, None for one by
        the number of columns; check, called before each row.
    """
    width, height = size or tile_size(len(columns), aspect)
    large, medium, small = font(22), font(16), font(14)
    label_width = max((_text_width(medium, line) for row in rows for line in row.label), default=0)
    left = MARGIN + 14 + label_width + 14
    row_height = height + 8 + 18 * max((len(tile.lines) for row in rows for tile in row.tiles), default=0) + 14
    sheet_width = MARGIN + max(
        left + len(columns) * (width + GAP) - GAP,
        2 * MARGIN + _text_width(large, title),
        MARGIN + _text_width(small, subtitle),
    )
    sheet = Image.new("RGB", (sheet_width, TOP + len(rows) * row_height + MARGIN - 14), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, BLACK, large)
    draw.text((MARGIN, MARGIN + 32), subtitle, GREY, small)
    lefts = [left + index * (width + GAP) for index in range(len(columns))]
    for x, name in zip(lefts, columns, strict=True):
        draw.text((x + width / 2, TOP - 14), shortened(name, width, 16), BLACK, medium, anchor="mm")
    for index, row in enumerate(rows):
        check()
        y = TOP + index * row_height
        draw.rectangle((MARGIN, y, MARGIN + 4, y + height - 1), row.colour)
        for line, text in enumerate(row.label):
            at = (MARGIN + 14, y + height / 2 + 20 * (line - (len(row.label) - 1) / 2))
            draw.text(at, text, BLACK if line == 0 else GREY, medium, anchor="lm")
        for x, tile in zip(lefts, row.tiles, strict=True):
            _draw_tile(sheet, tile, row.colour, (x, y, width, height))
    return sheet


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to (width, height); unchanged if it has that size."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def shortened(text: str, width: int, size: int) -> str:
    """A text that is at most so many pixels wide in a font size: its end is cut off and marked by dots."""
    face = font(size)
    if _text_width(face, text) <= width:
        return text
    kept = len(text)
    while kept and _text_width(face, f"{text[:kept]}...") > width:
        kept -= 1
    return f"{text[:kept].rstrip()}..."


def _draw_tile(sheet: Image.Image, tile: Tile, colour: str, box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    draw = ImageDraw.Draw(sheet)
    if tile.image is None:
        draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
    else:
        sheet.paste(fitted(tile.image, (width, height)), (x, y))
    if tile.bar > 0:
        draw.rectangle((x, y + height + 3, x + width - 1, y + height + 5), GRID)
        draw.rectangle((x, y + height + 3, x + max(1, round(width * min(1.0, tile.bar))) - 1, y + height + 5), colour)
    for line, text in enumerate(tile.lines):
        at = (x + width / 2, y + height + 17 + 18 * line)
        draw.text(at, text, BLACK if line == 0 else GREY, font(14), anchor="mm")


def _text_width(face, text: str) -> int:
    return math.ceil(face.getlength(text))
