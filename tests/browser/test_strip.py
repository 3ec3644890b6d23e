"""The block strip with a real mouse and keyboard, in both renderers."""

from __future__ import annotations

import pytest

from tests.browser.strips import FLUX, checked, clear_hover_texts, opened, write_headers

ALIGNMENT = "FLUX.1-dev: text alignment"


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


def test_click_drag_and_shift_click_write_the_text(comfy):
    strip = opened(comfy, "BlockSkip")
    assert strip.value() == ""
    strip.click(9)
    assert strip.value() == "9"
    strip.drag(0, 2, 5)
    assert strip.value() == "0-5, 9"
    strip.drag(4, 3)  # starts on a chosen block: unchooses
    assert strip.value() == "0-2, 5, 9"
    strip.click(9)
    assert strip.value() == "0-2, 5"
    strip.click(12)
    strip.page.keyboard.down("Shift")
    strip.click(15)
    strip.page.keyboard.up("Shift")
    assert strip.value() == "0-2, 5, 12-15" and strip.state()["chosen"] == [0, 1, 2, 5, 12, 13, 14, 15]
    (prompt,) = [node for node in comfy.prompt().values() if node["class_type"] == "BlockSkip"]
    assert prompt["inputs"]["blocks"] == "0-2, 5, 12-15"


def test_a_fast_drag_leaves_no_gaps_and_may_leave_the_strip(comfy):
    strip = opened(comfy, "TextDisable")
    strip.mouse.move(*strip.place(3))
    strip.mouse.down()
    x, y = strip.place(20)
    strip.mouse.move(x, y + 60)
    strip.mouse.move(x + 500, y + 60)
    strip.mouse.up()
    assert strip.value() == "3-23"
    strip.mouse.move(*strip.place(8))
    strip.mouse.down()
    strip.mouse.move(*strip.place(10), steps=3)
    strip.press("Escape")
    strip.mouse.up()
    assert strip.value() == "3-23", "Escape cancels a drag"


ZOOM = "() => app.canvas.ds.scale"
RESTORED = "() => !app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState"
STEPS = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"
TURN = 450  # ms after which a turn of the wheel has ended


def test_the_wheel_sets_the_strength_of_a_chosen_block_and_zooms_elsewhere(comfy):
    strip = opened(comfy, "TextBoost")
    strip.mouse.move(*strip.place(3))
    strip.mouse.wheel(0, -100)
    comfy.page.wait_for_function("app.canvas.ds.scale > 1.01")
    assert strip.value() == "", "over a block that is not chosen the wheel zooms"
    strip.unzoom()
    strip.set("3, 9")
    strip.page.wait_for_timeout(TURN)
    strip.mouse.move(*strip.place(3))
    strip.mouse.wheel(0, -100)
    strip.mouse.wheel(0, -100)
    strip.until("s.text === '3:1.7, 9'")
    assert "boost × 1.7" in strip.state(3)["label"]
    for _ in range(4):  # a touchpad
        strip.mouse.wheel(0, 15)
    strip.until("s.text === '3:1.6, 9'")
    assert comfy.run(ZOOM) == 1
    # Zooming across the strip does not change it.
    strip.page.wait_for_timeout(TURN)
    strip.mouse.move(700, 700)
    strip.mouse.wheel(0, -10)
    strip.mouse.move(*strip.place(3))
    strip.mouse.wheel(0, -10)
    comfy.page.wait_for_function("app.canvas.ds.scale > 1")
    strip.wait_stable()
    assert strip.value() == "3:1.6, 9"
    strip.unzoom()
    strip.click(12)  # with focus, the wheel sets any block
    strip.mouse.move(*strip.place(14))
    strip.page.wait_for_timeout(TURN)
    strip.mouse.wheel(0, 100)
    strip.until("s.text === '3:1.6, 9, 12, 14:1.4'")
    strip.page.keyboard.down("Control")
    strip.mouse.wheel(0, -100)
    strip.page.keyboard.up("Control")
    strip.wait_stable()
    assert strip.value() == "3:1.6, 9, 12, 14:1.4"


def test_a_drag_up_or_down_sets_a_strength(comfy):
    strip = opened(comfy, "TextBoost")
    strip.set("3:1.7")
    for up, text in ((0.2, "3:1.7, 7:2"), (-3.0, "3:1.7, 7:0")):
        strip.mouse.move(*strip.place(7))
        strip.mouse.down()
        strip.mouse.move(*strip.place(7, up), steps=4)
        strip.mouse.up()
        assert strip.value() == text
    strip.drag(7, 5)
    assert strip.value() == "3:1.7", "a horizontal drag paints"
    strip.drag(20, 22)
    assert strip.value() == "3:1.7, 20-22"


def test_a_block_without_its_own_strength_has_the_nodes(comfy):
    strip = opened(comfy, "TextBoost")
    strip.set("4, 5:3")
    script = "(v) => { const w = app.graph._nodes[1].widgets.find((w) => w.name === 'strength'); w.value = v; "
    comfy.run(script + "w.callback?.(v); }", 2.5)
    strip.until("s.label.includes('boost × 2.5')", 4)
    assert "boost × 3" in strip.state(5)["label"]


def test_the_keyboard_reaches_everything(comfy):
    strip = opened(comfy, "TextBoost")
    strip.mouse.click(*strip.state()["field"][:2])
    strip.press("Tab")
    assert strip.state()["focused"]
    strip.press("ArrowRight", "ArrowRight", "Space")
    assert strip.value() == "2"
    strip.press("Shift+ArrowRight", "Shift+ArrowRight")
    assert strip.value() == "2-4"
    strip.press("ArrowUp", "ArrowUp")
    assert strip.value() == "2-3, 4:1.7"
    strip.press("End", "Enter", "ArrowDown")
    assert strip.value() == "2-3, 4:1.7, 23:1.4"
    strip.press("Home", "Space", "Space")
    assert strip.value() == "2-3, 4:1.7, 23:1.4"
    assert strip.state(4)["foot"] == "block 0", "the block under the cursor is described"
    strip.press("End", "Delete", "Delete")
    assert strip.value() == "2-3, 4:1.7"
    assert comfy.run("() => app.graph._nodes.length") == 2, "the node is still there"


def test_the_strip_is_labelled_for_screen_readers(comfy):
    strip = opened(comfy, "TextBoost")
    strip.set("4:2")
    listbox = strip.page.get_by_role("listbox", name="blocks: 1 of 24 chosen")
    listbox.wait_for()
    assert listbox.get_attribute("aria-multiselectable") == "true"
    options = listbox.get_by_role("option")
    assert options.count() == 24
    assert options.nth(4).get_attribute("aria-selected") == "true"
    assert options.nth(4).get_attribute("aria-label") == "block 4 · boost × 2"
    assert listbox.get_attribute("aria-activedescendant") == options.nth(0).get_attribute("id")
    assert strip.page.get_by_label("blocks", exact=True).input_value() == "4:2"


def test_each_change_is_undone_and_redone_as_one_step(comfy):
    strip = opened(comfy, "TextBoost")
    before = comfy.run(STEPS)
    # Newer frontends add what changes within 50 ms after a step to that step.
    for change in (
        lambda: strip.click(2), lambda: strip.drag(5, 8), lambda: strip.press("ArrowUp"),
        lambda: strip.mouse.wheel(0, -100),
    ):  # fmt: skip
        change()
        strip.wait_stable()
    # Wait for the end of the wheel's turn.
    comfy.page.wait_for_function(f"(before) => ({STEPS})() === before + 4", arg=before)
    history = ["", "2", "2, 5-8", "2, 5-7, 8:1.6", "2, 5-7, 8:1.7"]
    assert strip.value() == history[-1]
    for text in reversed(history[:-1]):
        strip.press("Control+z")
        strip.until(f"s.text === '{text}'")
        comfy.page.wait_for_function(RESTORED)  # ComfyUI mixes up two steps that overlap
        strip.wait_stable()
    strip.press("Control+y")
    strip.until(f"s.text === '{history[1]}'")
    strip.wait_stable()
    strip.click(0)
    assert strip.value() == "0, 2"


def test_typed_text_is_drawn_and_its_errors_are_shown(comfy):
    strip = opened(comfy, "BlockSkip")
    strip.mouse.click(*strip.state()["field"][:2])
    strip.page.keyboard.type("late, !20")
    assert strip.value() == "late, !20" and strip.state()["chosen"] == [16, 17, 18, 19, 21, 22, 23]
    strip.page.keyboard.type(", frog")
    state = strip.state()
    assert state["foot"].startswith("'frog' cannot be read as blocks") and len(state["chosen"]) == 7
    strip.press("Control+a")
    strip.page.keyboard.type("3:2")
    assert "'3:2' has a strength" in strip.state()["foot"]
    strip.press("Control+a", "Backspace", "Tab")
    assert strip.value() == "" and strip.state()["foot"] == "block 0" or strip.state()["foot"].startswith("joint 0")


def test_the_signs_of_other_keyboards_become_plain_when_the_field_is_left(comfy):
    strip = opened(comfy, "TextBoost")
    for typed, chosen, plain in (
        ("4、5：2", [4, 5], "4,5:2"),
        ("0～3　7", [0, 1, 2, 3, 7], "0-3, 7"),
        ("1 3", [1, 3], "1, 3"),
    ):
        strip.mouse.click(*strip.state()["field"][:2])
        strip.press("Control+a")
        strip.page.keyboard.insert_text(typed)
        assert strip.value() == typed and strip.state()["chosen"] == chosen, "while typing the text stays"
        strip.press("Tab")
        assert strip.value() == plain and strip.state()["chosen"] == chosen
    strip.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=comfy.server.url)
    comfy.run("() => navigator.clipboard.writeText('１、3')")
    strip.choose("Paste text")
    strip.until("s.text === '1,3'")


def test_a_copied_node_has_its_own_text(comfy):
    strip = opened(comfy, "BlockSkip")
    strip.drag(1, 3)
    comfy.run("() => { document.activeElement.blur(); app.canvas.selectNode(app.graph._nodes[1]); }")
    strip.mouse.move(700, 600)
    strip.press("Control+c", "Control+v")
    strip.page.wait_for_function("app.graph._nodes.length === 3")
    by_id = "app.graph._nodes.filter((n) => n.type === 'BlockSkip').sort((a, b) => a.id - b.id)"
    values = f"() => {by_id}.map((n) => n.widgets[0].value)"
    assert comfy.run(values) == ["1-3", "1-3"]
    comfy.run("() => { app.graph._nodes.find((node) => node.id > 2).pos = [420, 520]; }")
    strip.wait_stable()
    strip.click(6)
    assert comfy.run(values) == ["1-3, 6", "1-3"]


def test_a_linked_strip_is_disabled_until_it_is_unlinked(comfy):
    strip = opened(comfy, "BlockSkip")
    strip.click(4)
    link = """() => {
        const text = LiteGraph.createNode("PrimitiveString");
        app.graph.add(text);
        text.widgets[0].value = "0-2";
        const skip = app.graph._nodes.find((node) => node.type === "BlockSkip");
        text.connect(0, skip, skip.inputs.findIndex((input) => input.name === "blocks"));
    }"""
    comfy.run(link)
    strip.until("s.inert && s.chosen.join() === '0,1,2'")
    strip.click(7)
    state = strip.state()
    assert state["value"] == "4" and state["inert"] and state["text"] == "0-2", "the link's value is used, not the text"
    comfy.run("""() => {
        const [widget] = app.graph._nodes.find((node) => node.type === "PrimitiveString").widgets;
        widget.value = "5";
        widget.callback?.("5");
    }""")
    strip.until("s.chosen.join() === '5'")
    prompt = next(node for node in comfy.prompt().values() if node["class_type"] == "BlockSkip")
    assert isinstance(prompt["inputs"]["blocks"], list)
    comfy.run("""() => {
        const skip = app.graph._nodes.find((node) => node.type === "BlockSkip");
        skip.disconnectInput(skip.inputs.findIndex((input) => input.name === "blocks"));
    }""")
    strip.until("!s.inert && s.chosen.length === 1")
    strip.wait_stable()
    strip.click(5)
    assert strip.value() == "4-5"


def test_the_menu_chooses_parts_and_pastes(comfy):
    strip = opened(comfy, "BlockSkip")
    strip.drag(0, 5)
    for entry, text in (
        ("Invert", "6-23"), ("All", "all"), ("None", ""), ("Early third", "early"), ("Middle third", "middle"),
        ("Late third", "late"),
    ):  # fmt: skip
        strip.choose(entry)
        assert strip.value() == text
        assert strip.page.locator(".mmdit-menu").count() == 0
    strip.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=comfy.server.url)
    comfy.run("() => navigator.clipboard.writeText('1, 3')")
    strip.choose("Paste text")
    strip.until("s.text === '1, 3'")
    assert strip.state()["focused"]
    strip.press("Shift+F10")  # by keyboard
    strip.page.wait_for_selector(".mmdit-menu")
    strip.press("ArrowDown", "Enter")
    assert strip.value() == ""
    strip.menu(3)
    strip.press("Escape")
    assert strip.page.locator(".mmdit-menu").count() == 0 and strip.state()["focused"]


# Boxes of the cells and of visible tooltips. In newer frontends a tooltip's frame has its text twice.
BOXES = """() => [".mmdit-strip", "[role=tooltip], .node-tooltip"].map((kind) => [...document.querySelectorAll(kind)]
    .filter((each) => each.checkVisibility())
    .map((each) => each.closest("[data-testid=tooltip-content]") ?? each)
    .filter((each, i, all) => all.indexOf(each) === i)
    .map((each) => (({ left, top, right, bottom }) => [left, top, right, bottom])(each.getBoundingClientRect())))"""


@pytest.mark.frontend
@pytest.mark.parametrize(("scale", "left"), [(1, 330), (1, 70), (2, 100)])
def test_comfyuis_tooltip_hides_no_cell(comfy, scale, left):
    """Nodes 2.0 shows the input's tooltip next to its row; in the classic renderer a strip has none."""
    strip = opened(comfy, "TextBoost")
    comfy.run(
        """([scale, left]) => {
            app.canvas.ds.scale = scale;
            const [x, y] = app.graph._nodes[1].pos;
            app.canvas.ds.offset = [left - x, 100 - y];
        }""",
        [scale, left],
    )
    strip.wait_stable()
    clear_hover_texts(comfy)
    strip.mouse.move(*strip.place(3))
    if comfy.renderer == "nodes2":
        comfy.page.get_by_role("tooltip").first.wait_for()
    ((cells,), tooltips) = comfy.wait_stable(BOXES)
    assert len(tooltips) == (comfy.renderer == "nodes2")
    for box in tooltips:
        apart = box[2] <= cells[0] or box[0] >= cells[2] or box[3] <= cells[1] or box[1] >= cells[3]
        assert apart, (cells, box)


def test_presets_are_for_their_own_model_and_lock_the_strip(comfy):
    strip = opened(comfy, "TextBoost")
    assert ALIGNMENT not in strip.menu(0), "published for another model"
    strip.press("Escape")
    strip = opened(comfy, "TextBoost", cells=57, file=FLUX)
    strip.click(0)
    strip.choose(ALIGNMENT)
    strip.until("s.chosen.join() === '2,7,12,17,22'")
    assert comfy.graph()["nodes"][1]["widgets_values"][-3:] == [ALIGNMENT, "", ""]
    strip.click(30)
    assert strip.state()["value"] == "0", "the preset is used instead of the text, which stays"
    strip.choose("No preset")
    strip.until("s.chosen.join() === '0'")
