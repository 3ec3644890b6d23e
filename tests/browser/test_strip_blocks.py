"""The strip's cells and the model: the kinds of its blocks, an unknown model, and numbers that no cell shows."""

from __future__ import annotations

import pytest

from mmdit_core.control.grammar import _GRAMMAR as GRAMMAR
from tests.browser.strips import FLUX, KREA, MEDIUM, QWEN, SMALL, Z_IMAGE, checked, opened, write_headers


@pytest.fixture(scope="module", autouse=True)
def files(comfyui):
    """Exist while this module's page is open: its loaders list them."""
    paths = write_headers(comfyui.base / "models" / "diffusion_models")
    yield
    for path in paths:
        path.unlink()


@pytest.fixture
def comfy(shared):
    yield from checked(shared)


@pytest.mark.parametrize(
    ("text", "shown", "block", "after", "then", "foot"),
    [
        ("3-20", [3, 4, 5, 6, 7], 6, "3-5, 7, 8-20", "3-7, 8-20", "blocks 8-20 are not in this model (0 to 7)"),
        ("2, 99", [2], 6, "2, 6, 99", "2, 99", "block 99 is not in this model (0 to 7)"),
        ("12-14", [], 0, "0, 12-14", "12-14", "blocks 12-14 are not in this model (0 to 7)"),
        ("6-8, 12", [6, 7], 7, "6, 8, 12", "6-7, 8, 12", "blocks 8, 12 are not in this model (0 to 7)"),
        ("all, !5-40", [0, 1, 2, 3, 4], 0, "1-4, !8-40", "0-4, !8-40", "blocks 8-40 are not in this model (0 to 7)"),
        ("0, !99", [0], 0, "none, !99", "0, !99", "block 99 is not in this model (0 to 7)"),
        ("frog, 3, 9", [3], 4, "3-4, frog, 9", "3, frog, 9",
         f"'frog' cannot be read as blocks. This model has blocks 0 to 7. {GRAMMAR}\n"
         "block 9 is not in this model (0 to 7)"),
    ],
)  # fmt: skip
def test_a_click_keeps_the_numbers_that_no_cell_shows(comfy, text, shown, block, after, then, foot):
    strip = opened(comfy, "BlockSkip", cells=8, loader="MMDiTLoader", file=SMALL)
    strip.set(text)
    assert strip.state()["chosen"] == shown, "the blocks of a range that exist are shown"
    strip.mouse.move(700, 700)
    strip.until("/not in this model/.test(s.foot)")
    state = strip.state()
    assert state["foot"] == state["hint"] == foot, "the line is cut where it is too long; the hover text is whole"
    strip.click(block)
    assert strip.value() == after
    strip.click(block)
    assert strip.value() == then
    assert set(strip.state()["chosen"]) == set(shown)


def test_a_range_beyond_the_blocks_keeps_its_strength(comfy):
    strip = opened(comfy, "TextBoost", cells=57, file=FLUX)
    strip.set("d17-30:2, s36-s50:1.2")
    assert strip.state()["chosen"] == [17, 18, 55, 56]
    strip.click(0)
    assert strip.value() == "0, 17-18:2, 55-56:1.2, d19-30:2, s38-50:1.2"


def test_blocks_beyond_the_cells_of_an_unknown_model_stay_in_the_text(comfy):
    strip = opened(comfy, "BlockSkip", file="nowhere.safetensors")
    strip.set("0-2, 30, s7")
    assert strip.state()["chosen"] == [0, 1, 2] and not strip.state()["foot"].startswith("block")
    strip.click(1)
    assert strip.value() == "0, 2, 30, s7"
    strip.set("20-30")
    assert strip.state()["chosen"] == [20, 21, 22, 23]
    strip.click(23)
    assert strip.value() == "20-22, 24-30"


GUESS = "model unknown: 24 blocks are a guess"


def test_a_strip_without_a_known_model_says_that_its_cells_are_a_guess(comfy):
    for file in ("nowhere.safetensors", None):
        strip = opened(comfy, "BlockSkip", file=file or MEDIUM)
        if file is None:
            comfy.run("() => app.graph._nodes[1].disconnectInput(0)")
        strip.mouse.move(700, 700)
        strip.until(f"s.foot === '{GUESS}'")
        assert strip.state()["list"] == f"blocks: 0 of 24 chosen · {GUESS}"
    strip = opened(comfy, "BlockSkip")
    strip.mouse.move(700, 700)
    strip.until("s.foot.startsWith('joint 0')")
    assert "guess" not in strip.state()["list"]


KINDS = {
    MEDIUM: (24, [24], "joint 048121620"),
    FLUX: (57, [19, 38], "double 0–18, single 19–56"),
    Z_IMAGE: (30, [30], "main 0–29 · noise and context refiners not counted"),
    KREA: (28, [28], "blocks 0481216202427"),
    QWEN: (60, [30, 30], "joint 0–59"),
}


@pytest.mark.parametrize("file", KINDS)
def test_the_kinds_of_blocks_are_named_as_the_family_has_them(comfy, file, test_output):
    cells, rows, foot = KINDS[file]
    strip = opened(comfy, "TextBoost", cells=cells, file=file)
    strip.mouse.move(700, 700)
    strip.until("s.foot && !s.foot.startsWith('block ')")
    state = strip.state()
    assert state["rows"] == rows and state["opens"] == []
    assert state["foot"].startswith(foot)
    comfy.page.screenshot(path=test_output / f"kinds-{file.split('.')[0]}-{comfy.renderer}.png",
                          clip={"x": 300, "y": 100, "width": 560, "height": 330})  # fmt: skip


def test_more_than_two_kinds_share_rows_with_lines_between_them(comfy):
    sections = [{"name": "text", "count": 2}, {"name": "double", "count": 3}, {"name": "single", "count": 4}]
    answer = {"sections": sections, "refiners": [], "double": 5, "single": 4}
    pattern = "**/mmdit/blocks?name=three*"
    comfy.page.route(pattern, lambda route: route.fulfill(json=answer))
    strip = opened(comfy, "BlockSkip", cells=9, file="three.safetensors")
    comfy.page.unroute(pattern)
    strip.mouse.move(700, 700)
    strip.until("s.foot === 'text 0–1, double 2–4, single 5–8'")
    state = strip.state(6)
    assert state["rows"] == [9] and state["opens"] == [2, 5]
    assert state["label"] == "block 6 (single s1)"


def test_the_two_numbers_of_an_older_server_are_enough(comfy):
    pattern = "**/mmdit/blocks?name=older*"
    comfy.page.route(pattern, lambda route: route.fulfill(json={"double": 3, "single": 5}))
    strip = opened(comfy, "BlockSkip", cells=8, file="older.safetensors")
    comfy.page.unroute(pattern)
    assert strip.state()["rows"] == [3, 5] and strip.state(4)["label"] == "block 4 (single s1)"


@pytest.mark.parametrize(
    "report",
    [
        "7", "null", "{ double: 24, single: 0 }", "{ double: 24, single: 0, effects: null }",
        "{ double: 24, single: 0, effects: { skip: 3 } }", "{ double: 24, single: 0, effects: { skip: [1, 2] } }",
        "{ double: 24, single: 0, effects: { skip: Array(1e6).fill(1) } }",
        "{ double: 24, single: 0, model: { toString: 1 }, effects: {} }",
    ],
)  # fmt: skip
def test_a_malformed_report_in_a_workflow_leaves_the_strips_alone(comfy, report):
    strip = opened(comfy, "BlockSkip", "TextDisable")
    comfy.run(f"() => {{ app.graph._nodes[1].properties.mmdit_report = {report}; }}")
    strip.mouse.move(700, 700)
    strip.mouse.move(*strip.place(3))
    strip.until("s.foot === 'block 3'")
    comfy.run("() => app.graph._nodes[1].disconnectInput(0)")
    strip.until("s.list.includes('guess')")
    assert strip.state()["measured"] == 0
