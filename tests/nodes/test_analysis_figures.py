"""The contact sheet and the plot of BlockAnalysis: sizes, frames, marks, and what is drawn again."""

from __future__ import annotations

import importlib

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def plots(pack):
    """The modules of the pack's plots."""
    return importlib.import_module(f"{pack.__name__}.nodes.plots")


def test_a_sheet_of_many_wide_images_stays_in_bounds(plots):
    tile = plots.contact_sheet.Tile(Image.new("RGB", (320, 180), "red"), ("latent 0.123", "image 0.456"), 0.5)
    row = plots.contact_sheet.Row(("skip", "all steps"), plots.canvas.ACTION_COLOURS["skip"], (tile,) * 58)
    sheet = plots.contact_sheet.contact_sheet("title", "about", [str(n) for n in range(58)], [row] * 2, aspect=16 / 9)
    assert 58 * 90 < sheet.width < 58 * 110 and sheet.height < 500
    assert sheet.getpixel((sheet.width // 2, 120)) == (255, 0, 0)


def test_a_sheet_drawn_tile_by_tile_equals_the_one_drawn_at_once(plots, monkeypatch):
    sheets, calls = plots.contact_sheet, []
    draw = sheets._draw_tile
    monkeypatch.setattr(sheets, "_draw_tile", lambda *given: calls.append(1) or draw(*given))
    image = Image.effect_noise((96, 96), 60).convert("RGB")
    names = [str(number) for number in range(4)]
    kept = sheets.ContactSheet()
    tiles = [sheets.Tile(lines=("", ""))] * 4

    def rows():
        return [
            sheets.Row(("skip", "all steps"), "#d55e00", tuple(tiles)),
            sheets.Row(("boost",), "#009e73", (tile,) * 4),
        ]

    tile = sheets.Tile(lines=("", ""))
    kept.draw("title", "about", names, rows())
    for number, found in enumerate((0.2, 0.9, 0.4)):
        bars = [sheets.Tile(each.image, each.lines, each.bar / 2) for each in tiles]
        tiles = [*bars[:number], sheets.Tile(image, (f"latent {found}", "image"), found), *bars[number + 1 :]]
        calls.clear()
        drawn = kept.draw("title", "about", names, rows())
        assert len(calls) <= number + 1, "tiles that did not change are drawn again"
    tiles[1] = sheets.Tile(image, tiles[1].lines, tiles[1].bar, "#ff0000")
    drawn = kept.draw("title", "about", names, rows())
    fresh = sheets.contact_sheet("title", "about", names, rows())
    assert drawn.tobytes() == fresh.tobytes()


def test_a_frame_is_next_to_an_image_and_covers_none_of_it(plots):
    sheets = plots.contact_sheet
    image = Image.new("RGB", (160, 160), "#123456")
    tiles = (sheets.Tile(image), sheets.Tile(image, frame="#ff0000"), sheets.Tile())
    sheet = sheets.contact_sheet("t", "s", "abc", [sheets.Row(("skip",), "#d55e00", tiles)])
    colours = dict((colour, count) for count, colour in sheet.getcolors(1 << 20))
    assert colours[18, 52, 86] == 2 * 160 * 160
    assert colours[255, 0, 0] == 166**2 - 160**2
    middle = [sheet.getpixel((x, sheets.TOP + 80)) for x in range(sheet.width)]
    first = middle.index((18, 52, 86))
    assert middle[first - 1] == (223, 227, 232) and middle[first + 168 - 3 : first + 168] == [(255, 0, 0)] * 3


@pytest.mark.parametrize(
    ("most", "marks"),
    [
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1.74, [0, 0.5, 1.0, 1.5, 2.0]),
        (0.031, [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035]),
        (0.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_the_axis_has_round_marks_up_to_the_largest_value(plots, most, marks):
    assert plots.line_plot.ticks(most) == marks


def test_a_plot_with_gaps_and_a_single_block_is_drawn(plots):
    lines = (
        plots.line_plot.Line("a", "#ff0000", ((3, 0.5),)),
        plots.line_plot.Line("b", "#0000ff", ((3, None),), "dotted"),
    )
    plot = plots.line_plot.line_plot("t", "s", [plots.line_plot.Panel("p", "x", "y", lines)])
    colours = {colour for _, colour in plot.getcolors(1 << 20)}
    assert (255, 0, 0) in colours and (0, 0, 255) in colours  # the point, and the second line in the legend


def test_a_plot_marks_points_and_a_limit_and_lists_both_in_the_legend(plots):
    module, red, blue = plots.line_plot, "#ff0000", "#0000ff"
    points = ((0, 0.1), (1, 0.8), (2, None))
    line = module.Line("skip, all steps", red, points, marked=(0, 2))
    limit = module.Limit(1.5, "nearly free skip: at most 1.5", blue)

    def pixels(*, mark, limited):
        lines = (line if mark else module.Line(line.label, red, points),)
        plot = module.line_plot("t", "s", [module.Panel("p", "x", "y", lines, limit if limited else None)])
        colours = dict((colour, count) for count, colour in plot.getcolors(1 << 20))
        return plot.height, colours.get((255, 0, 0), 0), colours.get((0, 0, 255), 0)

    plain, marked, both = (pixels(mark=mark, limited=limited) for mark, limited in ((0, 0), (1, 0), (1, 1)))
    assert plain[0] + 30 == marked[0] == both[0], "one more row in the legend"
    assert (
        marked[1] > plain[1] + 80 and marked[2] == 0
    )  # a ring, and one in the legend; a point without a value has none
    assert both[2] > 400  # the limit is above all values: the axis reaches it
