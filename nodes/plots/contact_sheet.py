"""A labelled contact sheet: images in rows and columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from .canvas import BLACK, EMPTY, GREY, GRID, MARGIN, WHITE, font

GAP = 8  # pixels between columns
FRAME = 3  # pixels of a wide frame, inside the gap
TOP = MARGIN + 64 + 26  # pixels above the first row: title, subtitle and the columns' names


@dataclass(frozen=True)
class Tile:
    """One image of a sheet, or an empty tile.

    Fields: image; lines of text below it; bar, its length in [0, 1] of the tile's width; frame, the colour of a wide
    frame, "" for a thin grey one.
    """

    image: Image.Image | None = None
    lines: tuple[str, ...] = ()
    bar: float = 0.0
    frame: str = ""


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


@dataclass(frozen=True)
class Layout:
    """What a sheet has besides its tiles.

    Fields: title, subtitle; columns, their names; labels and colours of the rows; lines, of text below a tile; size,
    width and height of a tile.
    """

    title: str
    subtitle: str
    columns: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    colours: tuple[str, ...]
    lines: int
    size: tuple[int, int]

    @property
    def left(self) -> int:
        """Pixels to the left of the first column."""
        widths = [_text_width(font(16), line) for label in self.labels for line in label]
        return MARGIN + 14 + max(widths, default=0) + 14

    @property
    def row_height(self) -> int:
        """Pixels from a row to the next one."""
        return self.size[1] + 8 + 18 * self.lines + 14


class ContactSheet:
    """A sheet that is drawn again and again while it fills: only tiles that changed are drawn."""

    def __init__(self) -> None:
        self._layout: Layout | None = None
        self._image = Image.new("RGB", (1, 1))
        self._drawn: dict[tuple[int, int], Tile] = {}  # (row, column) -> the tile there

    def draw(
        self,
        title: str,
        subtitle: str,
        columns: Sequence[str],
        rows: Sequence[Row],
        *,
        aspect: float = 1.0,
        size: tuple[int, int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Image.Image:
        """Draw the sheet. Returns: an image of its own.

        Args: columns, their names; aspect, width / height of the images; size, width and height of a tile, None for one
            by the number of columns; check, called before each row.
        """
        layout = Layout(
            title=title,
            subtitle=subtitle,
            columns=tuple(columns),
            labels=tuple(row.label for row in rows),
            colours=tuple(row.colour for row in rows),
            lines=max((len(tile.lines) for row in rows for tile in row.tiles), default=0),
            size=size or tile_size(len(columns), aspect),
        )
        if layout != self._layout:
            self._image, self._drawn = _empty_sheet(layout), {}
            self._layout = layout
        left, pitch = layout.left, layout.size[0] + GAP
        for index, row in enumerate(rows):
            check()
            for column, tile in enumerate(row.tiles):
                before = self._drawn.get((index, column))
                if before is None or not _looks_as(tile, before):
                    corner = (left + column * pitch, TOP + index * layout.row_height)
                    _draw_tile(self._image, tile, row.colour, (*corner, *layout.size), before)
                    self._drawn[index, column] = tile
        return self._image.copy()


def contact_sheet(title: str, subtitle: str, columns: Sequence[str], rows: Sequence[Row], **options) -> Image.Image:
    """Draw a sheet once. Args: as of ContactSheet.draw."""
    return ContactSheet().draw(title, subtitle, columns, rows, **options)


def _empty_sheet(layout: Layout) -> Image.Image:
    """Everything but the tiles."""
    (width, height), left = layout.size, layout.left
    large, medium, small = font(22), font(16), font(14)
    sheet_width = MARGIN + max(
        left + len(layout.columns) * (width + GAP) - GAP,
        2 * MARGIN + _text_width(large, layout.title),
        MARGIN + _text_width(small, layout.subtitle),
    )
    sheet = Image.new("RGB", (sheet_width, TOP + len(layout.labels) * layout.row_height + MARGIN - 14), WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), layout.title, BLACK, large)
    draw.text((MARGIN, MARGIN + 32), layout.subtitle, GREY, small)
    for index, name in enumerate(layout.columns):
        middle = left + index * (width + GAP) + width / 2
        draw.text((middle, TOP - 14), shortened(name, width, 16), BLACK, medium, anchor="mm")
    for index, (label, colour) in enumerate(zip(layout.labels, layout.colours, strict=True)):
        y = TOP + index * layout.row_height
        draw.rectangle((MARGIN, y, MARGIN + 4, y + height - 1), colour)
        for line, text in enumerate(label):
            at = (MARGIN + 14, y + height / 2 + 20 * (line - (len(label) - 1) / 2))
            draw.text(at, text, BLACK if line == 0 else GREY, medium, anchor="lm")
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


def _looks_as(tile: Tile, other: Tile) -> bool:
    """Whether two tiles look the same. Images are compared by identity: to compare pixels is as slow as to draw."""
    return _without_bar(tile) == _without_bar(other) and tile.bar == other.bar


def _without_bar(tile: Tile) -> tuple[object, ...]:
    return id(tile.image), tile.lines, tile.frame


def _draw_tile(
    sheet: Image.Image, tile: Tile, colour: str, box: tuple[int, int, int, int], before: Tile | None = None
) -> None:
    """Draw a tile into a box of (left, top, width, height). Args: colour, of the bar; before, the tile there."""
    x, y, width, height = box
    draw = ImageDraw.Draw(sheet)
    if before is None or _without_bar(tile) != _without_bar(before):
        bottom = y + height + 8 + 18 * len(tile.lines)
        draw.rectangle((x - FRAME, y - FRAME, x + width - 1 + FRAME, bottom), WHITE)
        outside = FRAME if tile.frame else 1  # the frame is in the gap between tiles: an image keeps all of its pixels
        edges = (x - outside, y - outside, x + width - 1 + outside, y + height - 1 + outside)
        draw.rectangle(edges, EMPTY if tile.image is None else None, tile.frame or GRID, outside)
        if tile.image is not None:
            sheet.paste(fitted(tile.image, (width, height)), (x, y))
        for line, text in enumerate(tile.lines):
            at = (x + width / 2, y + height + 17 + 18 * line)
            draw.text(at, text, BLACK if line == 0 else GREY, font(14), anchor="mm")
    if tile.bar > 0:
        top, length = y + height + 4, max(1, round(width * min(1.0, tile.bar)))
        draw.rectangle((x, top, x + width - 1, top + 2), GRID)
        draw.rectangle((x, top, x + length - 1, top + 2), colour)


def _text_width(face, text: str) -> int:
    return math.ceil(face.getlength(text))
