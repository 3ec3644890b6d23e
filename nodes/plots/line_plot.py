"""A line plot: panels next to each other with one legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from .canvas import BLACK, GREY, GRID, HEAD, MARGIN, Canvas

WIDTH, HEIGHT = 720, 440  # pixels of a panel with its labels
LEFT, INSET = 84, 18  # pixels: the y axis with its labels; between a panel's edges and its first and last point
MOST_NAMED = 8  # marked points that the legend names


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Fields: points (x, y), y None where there is no value; style, a key of DASHES; marked, the x of points with a ring.
    """

    label: str
    colour: str
    points: tuple[tuple[int, float | None], ...]
    style: str = "solid"
    marked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Limit:
    """A value of y with a dashed line across a panel, its number at the end, and its label in the legend."""

    value: float
    label: str
    colour: str = BLACK


@dataclass(frozen=True)
class Panel:
    """One panel of a plot; its y axis begins at 0."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    limit: Limit | None = None


def line_plot(
    title: str, subtitle: str, panels: Sequence[Panel], *, check: Callable[[], None] = lambda: None
) -> Image.Image:
    """Draw panels next to each other, with the legend of the first one below.

    Args: check, called before each panel, and before the image is made smaller, which takes as long.
    """
    lines = panels[0].lines
    colours = list(dict.fromkeys(line.colour for line in lines))
    # One row if every line has its own colour, else one row for each colour.
    legend = [lines] if len(colours) == len(lines) else [[x for x in lines if x.colour == c] for c in colours]
    marked = [line for line in lines if line.marked]
    limits = [panel.limit for panel in panels if panel.limit]
    signs = len(marked) + len(limits)  # in one more row of the legend
    canvas = Canvas(WIDTH * len(panels), HEAD + HEIGHT + 30 * (len(legend) + bool(signs)) + MARGIN, title, subtitle)
    for index, panel in enumerate(panels):
        check()
        draw_panel(canvas, panel, (index * WIDTH, HEAD, WIDTH, HEIGHT))
    for row, entries in enumerate(legend):
        for column, line in enumerate(entries):
            x, y = MARGIN + 72 + column * 210, HEAD + HEIGHT + 16 + 30 * row
            canvas.path([(x, y), (x + 48, y)], line.colour, line.style)
            canvas.dot((x + 24, y), line.colour)
            canvas.text((x + 58, y), line.label, BLACK, 15, anchor="lm")
    y = HEAD + HEIGHT + 16 + 30 * len(legend)
    for column, line in enumerate(marked):
        x = MARGIN + 72 + column * 420
        canvas.dot((x + 24, y), line.colour)
        canvas.ring((x + 24, y), line.colour)
        blocks = ", ".join(map(str, line.marked[:MOST_NAMED])) + ", ..." * (len(line.marked) > MOST_NAMED)
        canvas.text((x + 58, y), f"suggested for {line.label.partition(',')[0]}: {blocks}", BLACK, 15, anchor="lm")
    for column, limit in enumerate(limits, start=len(marked)):
        x = MARGIN + 72 + column * 420
        canvas.path([(x, y), (x + 48, y)], limit.colour, "dashed", 1.5)
        canvas.text((x + 58, y), limit.label, BLACK, 15, anchor="lm")
    check()
    return canvas.image


def draw_panel(canvas: Canvas, panel: Panel, box: tuple[int, int, int, int]) -> None:
    """Draw a panel into a box of (left, top, width, height)."""
    left, top, right, bottom = box[0] + LEFT, box[1] + 36, box[0] + box[2] - MARGIN, box[1] + box[3] - 60
    xs = sorted({x for line in panel.lines for x, _ in line.points}) or [0]
    highest = [y for line in panel.lines for _, y in line.points if y is not None]
    marks = ticks(max([*highest, *([panel.limit.value] if panel.limit else [])], default=1.0))

    def at(x: float, y: float) -> tuple[float, float]:
        fraction = (x - xs[0]) / (xs[-1] - xs[0]) if len(xs) > 1 else 0.5
        return left + INSET + fraction * (right - left - 2 * INSET), bottom - y / marks[-1] * (bottom - top)

    canvas.text((left, top - 22), panel.title, BLACK, 17, anchor="lm")
    decimals = max(0, -math.floor(math.log10(marks[1]))) if marks[1] < 1 else 0
    for mark in marks:
        y = at(xs[0], mark)[1]
        canvas.path([(left, y), (right, y)], GRID if mark else GREY, thickness=1)
        canvas.text((left - 8, y), f"{mark:.{decimals}f}", GREY, 14, anchor="rm")
    for x in xs[:: math.ceil(len(xs) / 20)]:
        column = at(x, 0)[0]
        canvas.path([(column, bottom), (column, bottom + 5)], GREY, thickness=1)
        canvas.text((column, bottom + 16), str(x), GREY, 14, anchor="mm")
    canvas.text(((left + right) / 2, bottom + 42), panel.x_label, BLACK, 15, anchor="mm")
    canvas.text_upwards((box[0] + 30, (top + bottom) / 2), panel.y_label, BLACK, 15)
    if panel.limit:
        y = at(xs[0], panel.limit.value)[1]
        canvas.path([(left, y), (right, y)], panel.limit.colour, "dashed", 1.5)
        canvas.text((right + 2, y), f"{panel.limit.value:.2g}", panel.limit.colour, 12, anchor="lm")
    for line in panel.lines:
        points = [at(x, y) for x, y in line.points if y is not None]
        canvas.path(points, line.colour, line.style)
        for point in points:
            canvas.dot(point, line.colour)
        for x, value in line.points:
            if x in line.marked and value is not None:
                canvas.ring(at(x, value), line.colour)


def ticks(largest: float) -> list[float]:
    """Choose 4 to 8 round marks from 0 to at least the largest value."""
    largest = largest if largest > 0 and math.isfinite(largest) else 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(factor * power for factor in (0.2, 0.5, 1.0, 2.0) if largest / (factor * power) <= 7)
    return [round(index * step, 12) for index in range(math.ceil(largest / step - 1e-9) + 1)]
