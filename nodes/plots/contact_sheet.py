"""A labelled contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .canvas import EMPTY, FAINT, INK, LINES, MARGIN, PAPER, font, text_width

GAP = 8


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
    left = MARGIN + 14 + max((text_width(medium, part) for row in rows for part in row.label), default=0) + 14
    top = MARGIN + 64 + 26
    row_height = height + under + 14
    wide = max(left + len(columns) * (width + GAP) - GAP, 2 * MARGIN + text_width(large, title)) + MARGIN
    wide = max(wide, MARGIN * 2 + text_width(small, subtitle))
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
