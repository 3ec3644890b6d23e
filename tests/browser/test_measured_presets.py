"""Measured presets in the menu of the block strip: chosen, refused, saved, in both renderers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdit_core.control.preset_files import Evidence, MeasuredPreset, read_presets, write_presets
from tests.browser.strips import MEDIUM, SMALL, Strip, checked, graph, opened, write_headers

EVIDENCE = Evidence("2026-11-30", "shapes", 128, "shapes", "all", 3.1, 0.4, 5.8, 0.2, 8, 4.5)
BOOST = MeasuredPreset("count", "boost", "SD3, SD3.5", 8, 0, SMALL, "2, 3:2", "positive", 1.25, "value", EVIDENCE)
SKIP = MeasuredPreset("fast", "skip", "SD3, SD3.5", 8, 0, SMALL, "4", "both", evidence=EVIDENCE)
OTHER = MeasuredPreset("large", "boost", "SD3, SD3.5", 38, 0, "large.safetensors", "2", "both", 1.5, "value")
FAMILY = MeasuredPreset("eight", "boost", "Qwen-Image", 8, 0, "q.safetensors", "2", "both", 1.5, "value")
DETAIL = f"{SMALL}: all +3.1 (0.4 to 5.8), random blocks +0.2; 128 shapes prompts, 2026-11-30"
SAVE, OWN = "Save as preset…", {"cells": 8, "loader": "MMDiTLoader", "file": SMALL}

WIDGETS = """(type) => Object.fromEntries(app.graph._nodes.find((each) => each.type === type).widgets
    .map(({ name, value }) => [name, value]))"""
NOTE = """(type) => app.graph._nodes.find((each) => each.type === type).widgets
    .find(({ name }) => name === "made_for_note")?.element.textContent ?? null"""


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


@pytest.fixture(autouse=True)
def folder(comfyui):
    path = comfyui.base / "user" / "default" / "mmdit" / "presets"
    path.mkdir(parents=True, exist_ok=True)
    (path / "study.json").write_text(write_presets([OTHER, FAMILY, BOOST, SKIP]), encoding="utf-8")
    (path / "wrong.json").write_text("{}", encoding="utf-8")
    yield path
    for each in path.iterdir():
        each.unlink()


def items(strip: Strip) -> dict[str, tuple[str, bool]]:
    """The menu's items: text -> (the line below it, whether it can be chosen)."""
    strip.menu(0)
    found = strip.page.evaluate(
        """() => [...document.querySelectorAll(".mmdit-menu button")].map((item) =>
            [item.firstChild.textContent, item.querySelector("small")?.textContent ?? "", !item.disabled])"""
    )
    return {text: (detail, enabled) for text, detail, enabled in found}


def saved(comfy, node: str):
    return next(each for each in comfy.graph()["nodes"] if each["type"] == node)["widgets_values"]


def test_a_measured_preset_fills_the_widgets_and_leaves_preset_at_none(comfy, test_name):
    strip = opened(comfy, "TextBoost", **OWN)
    found = items(strip)
    assert found["count"] == (DETAIL, True) and "fast" not in found, "presets of the node's action alone"
    strip.page.screenshot(path=Path(".test-output") / f"{test_name}-menu.png")
    strip.press("Escape")
    strip.choose("count")
    strip.until("s.chosen.join() === '2,3'")
    widgets = comfy.run(WIDGETS, "TextBoost")
    assert [widgets[name] for name in ("blocks", "strength", "mode", "branch", "preset", "made_for")] == [
        "2, 3:2", 1.25, "value", "positive", "none", BOOST.made_for,
    ]  # fmt: skip
    assert widgets["phrase"] == "" and widgets["part"] == "all"
    (prompt,) = [node for node in comfy.prompt().values() if node["class_type"] == "TextBoost"]
    assert prompt["inputs"]["preset"] == "none" and prompt["inputs"]["made_for"] == BOOST.made_for
    comfy.page.wait_for_function(f"() => ({NOTE})('TextBoost')?.includes('128 shapes prompts, all +3.1')")
    assert saved(comfy, "TextBoost")[-2] == BOOST.made_for, "the note is not saved"
    comfy.screenshot(Path(".test-output") / f"{test_name}-node.png")


def test_the_note_is_there_in_an_opened_workflow_and_goes_with_the_text(comfy):
    strip = opened(comfy, "BlockSkip", **OWN)
    strip.choose("fast")
    workflow = comfy.graph()
    comfy.load(graph("TextBoost"))
    comfy.load(workflow)
    comfy.page.wait_for_function(f"() => ({NOTE})('BlockSkip') === 'Made for {SKIP.made_for}'")
    assert comfy.run(WIDGETS, "BlockSkip")["branch"] == "both"
    strip = Strip(comfy, "BlockSkip")
    strip.unzoom()
    strip.choose("No preset")
    comfy.page.wait_for_function(f"() => ({NOTE})('BlockSkip') === null")
    assert comfy.run(WIDGETS, "BlockSkip")["made_for"] == "" and strip.value() == "4"


def test_presets_for_another_model_and_files_that_cannot_be_read_are_disabled_with_words(comfy):
    strip = opened(comfy, "TextBoost", **OWN)
    found = items(strip)
    assert found["large"] == ("For SD3, SD3.5 38+0; the connected model is another one.", False)
    assert found["eight"] == ("For Qwen-Image 8+0; the connected model is another one.", False), "the family differs"
    detail, enabled = found["wrong.json"]
    assert "file.format: missing" in detail and not enabled
    strip.press("Escape")


def test_undo_takes_back_a_chosen_preset_in_one_step(comfy):
    strip = opened(comfy, "TextBoost", **OWN)
    strip.click(6)
    before = comfy.run(WIDGETS, "TextBoost")
    strip.choose("count")
    strip.until("s.chosen.join() === '2,3'")
    comfy.page.mouse.move(700, 800)
    comfy.run("() => app.extensionManager.command.execute('Comfy.Undo')")
    Strip(comfy, "TextBoost").until("s.chosen.join() === '6'")
    now = comfy.run(WIDGETS, "TextBoost")
    assert {name: now[name] for name in before} == before


def test_the_widgets_are_saved_as_a_preset_and_no_file_is_overwritten(comfy, folder, test_name):
    strip = opened(comfy, "TextBoost", **OWN)
    assert not items(strip)[SAVE][1], "nothing is chosen"
    strip.press("Escape")
    strip.set("1, 5")
    strip.until("s.chosen.join() === '1,5'")
    strip.choose(SAVE)
    dialog = comfy.page.get_by_role("dialog")
    dialog.get_by_role("textbox").fill("mine")
    comfy.page.screenshot(path=Path(".test-output") / f"{test_name}.png")
    comfy.page.keyboard.press("Enter")
    comfy.page.get_by_text("mmdit/presets/saved-mine.json").first.wait_for()
    (preset,) = read_presets((folder / "saved-mine.json").read_text(encoding="utf-8"))
    assert preset == MeasuredPreset("mine", "boost", "SD3, SD3.5", 8, 0, SMALL, "1, 5", "both", 1.5, "residual")
    strip.choose(SAVE)
    dialog.get_by_role("textbox").fill("Mine")
    comfy.page.keyboard.press("Enter")
    comfy.page.get_by_text('There is a file for "Mine"').first.wait_for()
    (refused,) = comfy.pack_errors()  # Chromium's own line about an answer with an error's status
    assert "409" in refused
    comfy.console_errors.clear()
    assert len(list(folder.glob("saved-*"))) == 1
    comfy.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert items(strip)["mine"] == (f"{SMALL}: saved, no score", True), "a new file is listed at once"
    strip.press("Escape")


LIST = """(type) => app.graph._nodes.find((each) => each.type === type).widgets
    .find(({ name }) => name === "preset").options.values"""


def choose_in_list(comfy, name: str) -> None:
    """Choose a preset in the list of the node's `preset` input, with the mouse."""
    page = comfy.page
    if comfy.renderer == "classic":
        comfy.run("""() => {
            const node = app.graph._nodes.find((each) => each.type === "TextBoost");
            if (!node.showAdvanced) node.widgets.find(({ name }) => name === "advanced").callback();
        }""")
        comfy.wait_stable()
        at = comfy.run(
            """() => {
                const node = app.graph._nodes.find((each) => each.type === "TextBoost");
                const widget = node.widgets.find(({ name }) => name === "preset");
                return app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 200, node.pos[1] + widget.last_y + 10]);
            }"""
        )
        box = page.locator("#graph-canvas").bounding_box()
        page.mouse.click(box["x"] + at[0], box["y"] + at[1])
        page.locator(".litemenu-entry", has_text=name).first.click()
    else:
        page.get_by_text("Show advanced inputs").first.click()
        comfy.wait_stable()
        page.get_by_role("combobox", name="preset").first.click()
        page.get_by_role("option", name=name).first.click()


def test_a_refresh_of_the_page_lists_new_files(comfy, folder):
    opened(comfy, "TextBoost", **OWN)
    comfy.page.wait_for_function(f"() => ({LIST})('TextBoost').includes('count')")
    (folder / "new.json").write_text(write_presets([BOOST]), encoding="utf-8")
    comfy.run("() => app.refreshComboInNodes()")
    comfy.page.wait_for_function(f"() => ({LIST})('TextBoost').includes('count (study.json)')")
    assert comfy.run(LIST, "TextBoost").count("none") == 1
    (folder / "new.json").unlink()
    comfy.run("() => app.refreshComboInNodes()")
    comfy.page.wait_for_function(f"() => !({LIST})('TextBoost').includes('count (study.json)')")


def test_measured_presets_are_in_the_list_of_the_input_too(comfy, test_name):
    strip = opened(comfy, "TextBoost", **OWN)
    page = comfy.page
    page.wait_for_function(f"() => ({LIST})('TextBoost').includes('count')")
    assert comfy.run(LIST, "TextBoost") == ["none", "FLUX.1-dev: text alignment", "large", "eight", "count"]
    choose_in_list(comfy, "count")
    strip.until("s.chosen.join() === '2,3'")
    page.screenshot(path=Path(".test-output") / f"{test_name}.png")
    widgets = comfy.run(WIDGETS, "TextBoost")
    assert (widgets["preset"], widgets["made_for"], widgets["mode"]) == ("none", BOOST.made_for, "value")
    assert comfy.prompt()["2"]["inputs"]["preset"] == "none"
    strip = opened(comfy, "TextBoost", **OWN)
    choose_in_list(comfy, "large")
    page.get_by_text("For SD3, SD3.5 38+0; the connected model is another one.").first.wait_for()
    widgets = comfy.run(WIDGETS, "TextBoost")
    assert (widgets["preset"], widgets["made_for"], widgets["blocks"]) == ("none", "", "")


def test_a_preset_of_the_list_does_not_replace_an_input_that_is_linked(comfy):
    opened(comfy, "TextBoost", **OWN)
    comfy.page.wait_for_function(f"() => ({LIST})('TextBoost').includes('count')")
    comfy.run(
        """() => {
            const node = app.graph._nodes.find((each) => each.type === "TextBoost");
            const source = LiteGraph.createNode("PrimitiveFloat");
            source.pos = [0, 600];
            app.graph.add(source);
            source.connect(0, node, node.inputs.findIndex(({ name }) => name === "strength"));
        }"""
    )
    choose_in_list(comfy, "count")
    comfy.page.get_by_text("An input that it fills is linked.").first.wait_for()
    widgets = comfy.run(WIDGETS, "TextBoost")
    assert (widgets["preset"], widgets["made_for"], widgets["blocks"]) == ("none", "", "")


GUIDANCE = "SD3.5 Medium: skip-layer guidance 7, 8, 9"


def test_the_published_skip_layers_fill_the_widgets_on_sd35_medium_alone(comfy):
    strip = opened(comfy, "BlockSkip")
    listed = items(strip)
    detail, enabled = listed[GUIDANCE]
    assert not listed["fast"][1], "the model is known: presets for another one are disabled"
    assert enabled and "SkipLayerGuidanceSD3 is the exact published method" in detail
    strip.press("Escape")
    strip.choose(GUIDANCE)
    strip.until("s.chosen.join() === '7,8,9'")
    widgets = comfy.run(WIDGETS, "BlockSkip")
    assert {name: widgets[name] for name in ("blocks", "branch", "start_percent", "end_percent", "preset")} == {
        "blocks": "7-9", "branch": "negative", "start_percent": 0.01, "end_percent": 0.2, "preset": "none",
    }  # fmt: skip
    assert widgets["made_for"] == "SD3.5 Medium 24+0: skip-layer guidance 7, 8, 9"
    pattern = "**/mmdit/blocks?name=sd3-medium*"  # as many blocks, and no second attention
    sd3 = {"double": 24, "single": 0, "family": "SD3, SD3.5", "variant": None}
    comfy.page.route(pattern, lambda route: route.fulfill(json=sd3))
    strip = opened(comfy, "BlockSkip", file="sd3-medium.safetensors")
    comfy.page.unroute(pattern)
    refused = ("For SD3.5 Medium 24+0; the connected model is another one.", False)
    assert items(strip)[GUIDANCE] == refused
    strip.press("Escape")
    strip = opened(comfy, "BlockSkip", **OWN)
    assert items(strip)[GUIDANCE] == refused
    strip.press("Escape")


def report(comfy, suggested: str, model: str = f"{MEDIUM} (SD3)") -> None:
    """Give the loader the report of an analysis, as a workflow's property."""
    comfy.run(
        f"""(model) => {{
            const effects = {{ skip: Array(24).fill(0.5) }};
            const found = {{ model, double: 24, single: 0, effects, suggested: {suggested} }};
            app.graph._nodes[0].properties.mmdit_report = found;
        }}""",
        model,
    )


def test_the_suggestion_of_an_analysis_is_used_by_one_click_and_taken_back_by_one_undo(comfy, test_name):
    strip = opened(comfy, "BlockSkip", "TextBoost")
    report(comfy, '{ skip: "4, 6", boost: "6:2" }')
    strip.click(2)
    before = comfy.run(WIDGETS, "BlockSkip")
    assert "Use the suggestion: 4, 6" in items(strip)
    strip.page.screenshot(path=Path(".test-output") / f"{test_name}.png")
    strip.press("Escape")
    strip.choose("Use the suggestion: 4, 6")
    strip.until("s.chosen.join() === '4,6'")
    assert comfy.run(WIDGETS, "BlockSkip") == {**before, "blocks": "4, 6", "branch": "both"}
    comfy.page.mouse.move(700, 800)
    comfy.run("() => app.extensionManager.command.execute('Comfy.Undo')")
    strip = Strip(comfy, "BlockSkip")
    strip.until("s.chosen.join() === '2'")
    assert comfy.run(WIDGETS, "BlockSkip") == before
    boost = Strip(comfy, "TextBoost")
    boost.choose("Use the suggestion: 6:2")
    boost.until("s.chosen.join() === '6'")
    assert comfy.run(WIDGETS, "TextBoost")["blocks"] == "6:2"
    comfy.run("""() => {
        const analysis = LiteGraph.createNode("BlockAnalysis");
        app.graph.add(analysis);
        analysis.properties.mmdit_report = app.graph._nodes[0].properties.mmdit_report;
        const skip = app.graph._nodes.find((node) => node.type === "BlockSkip");
        analysis.connect(3, skip, skip.inputs.findIndex((input) => input.name === "blocks"));
    }""")
    strip.until("s.inert && s.chosen.join() === '4,6'")  # the last run's list, linked


MALFORMED = (
    "null", "7", '"4"', "[4]", "{ skip: 4 }", "{ skip: ['4'] }", "{ skip: '' }", "{ skip: '99' }", "{ skip: '4:2' }",
    "{ skip: '4, <b>' }", "{ skip: '4,'.repeat(400) }", "{ skip: { toString: 1 } }", "{ boost: '4' }",
)  # fmt: skip


def test_a_malformed_suggestion_in_a_workflow_and_that_of_another_file_are_ignored(comfy):
    strip = opened(comfy, "BlockSkip")

    def offered() -> list[str]:
        found = [text for text in items(strip) if "suggestion" in text]
        strip.press("Escape")
        return found

    for suggested in MALFORMED:
        report(comfy, suggested)
        assert offered() == [], suggested
    for model in (f"other-{MEDIUM} (SD3)", f"{MEDIUM}.safetensors (SD3)", "SD3"):
        report(comfy, "{ skip: '4' }", model)
        assert offered() == [], model
    report(comfy, "{ skip: '4' }")
    assert offered() == ["Use the suggestion: 4"]
