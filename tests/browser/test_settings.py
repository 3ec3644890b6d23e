"""The pack's settings, in both renderers: their texts and their effects."""

from __future__ import annotations

import json

import pytest

from scripts.environment import ROOT
from tests.browser.strips import Strip, graph

SET = "async ([id, value]) => await app.extensionManager.setting.set(id, value)"
OURS = """() => Object.values(app.ui.settings.settingsLookup ?? app.extensionManager.setting.settings)
    .filter((each) => each.id.startsWith("MMDiT."))
    .map(({ id, name, tooltip, category, defaultValue, options }) => ({ id, name, tooltip, category, defaultValue,
        options: options ? [...options] : null }))"""
DRAG = """(type) => {
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    return Object.fromEntries(node.widgets
        .filter((widget) => widget.type !== "MMDIT_NOTE").map((widget) => [widget.name, widget.value]));
}"""
VALUES = (
    """(id) => Object.fromEntries(app.graph.getNodeById(id).widgets.map((widget) => [widget.name, widget.value]))"""
)
EMPTY = {"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4}
CHANGED = {"steps": 12, "cfg": 1.0, "solver": "heun"}


@pytest.fixture
def comfy(shared):
    shared.console_errors.clear()
    shared.page.set_default_timeout(15_000)
    shared.load(EMPTY)
    defaults = {each["id"]: each["defaultValue"] for each in shared.run(OURS)}
    yield shared
    for name, value in defaults.items():
        shared.run(SET, [name, value])
    assert shared.pack_errors() == []


def choose(comfy, **values) -> None:
    for name, value in values.items():
        comfy.run(SET, [f"MMDiT.NewSampler.{name.capitalize()}", value])


def test_each_setting_is_translated_and_has_the_nodes_default(comfy):
    found = {each["id"]: each for each in comfy.run(OURS)}
    chinese = json.loads((ROOT / "locales" / "zh" / "settings.json").read_text(encoding="utf-8"))
    groups = json.loads((ROOT / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))["settingsCategories"]
    assert {name.replace(".", "_") for name in found} == set(chinese) and len(found) == 7
    for name, each in found.items():
        words = chinese[name.replace(".", "_")]
        assert each["name"] and each["tooltip"] and set(words) == {"name", "tooltip"}
        assert set(each["category"][:2]) <= set(groups)
    widgets = comfy.run(DRAG, "FlowMatchingSampler")
    info = comfy.server.object_info("FlowMatchingSampler")["input"]["required"]
    for name in CHANGED:
        assert (
            found[f"MMDiT.NewSampler.{name.capitalize()}"]["defaultValue"] == widgets[name] == info[name][1]["default"]
        )
    solvers = info["solver"][0] if isinstance(info["solver"][0], list) else info["solver"][1]["options"]
    assert found["MMDiT.NewSampler.Solver"]["options"] == solvers


def test_a_new_sampler_gets_the_settings_and_a_saved_one_keeps_its_values(comfy):
    plain = comfy.run(DRAG, "FlowMatchingSampler")
    saved = comfy.graph()
    choose(comfy, **CHANGED)
    new = comfy.run(DRAG, "FlowMatchingSampler")
    assert {name: new[name] for name in CHANGED} == CHANGED
    assert {name: value for name, value in new.items() if name not in CHANGED} == {
        name: value for name, value in plain.items() if name not in CHANGED
    } | {"seed": new["seed"]}
    number = saved["nodes"][0]["id"]
    comfy.load(saved)
    assert {name: value for name, value in comfy.run(VALUES, number).items() if name in plain} == plain
    # A file without some values: the missing ones are the node's defaults, not the settings'.
    for short in ([7, "fixed"], None):
        node = {key: value for key, value in saved["nodes"][0].items() if key != "widgets_values"}
        comfy.load({**saved, "nodes": [{**node, **({"widgets_values": short} if short else {})}]})
        assert {name: comfy.run(VALUES, number)[name] for name in CHANGED} == {name: plain[name] for name in CHANGED}


def test_without_strips_the_blocks_are_a_plain_text_with_the_same_value(comfy, test_output):
    comfy.load(graph("TextBoost"))
    strip = Strip(comfy, "TextBoost")
    strip.set("2:1.5, 7")
    saved = comfy.graph()
    comfy.run(SET, ["MMDiT.Nodes.Strip", False])
    comfy.load(saved)
    assert comfy.page.locator(".mmdit-blocks").count() == 0
    assert comfy.graph()["nodes"][1]["widgets_values"] == saved["nodes"][1]["widgets_values"]
    (prompt,) = [node for node in comfy.prompt().values() if node["class_type"] == "TextBoost"]
    assert prompt["inputs"]["blocks"] == "2:1.5, 7"
    comfy.run(SET, ["MMDiT.Nodes.Strip", True])
    comfy.load(saved)
    assert comfy.page.locator(".mmdit-blocks").count() == 1 and strip.value() == "2:1.5, 7"


def test_token_counts_can_be_switched_off_and_on(comfy):
    comfy.load(ROOT / "workflows" / "quickstart.json")
    note = comfy.page.locator(".mmdit-note", has_text="CLIP-L")
    note.first.wait_for(state="attached")
    comfy.wait_stable()
    size = [each["size"] for each in comfy.graph()["nodes"]]
    comfy.run(SET, ["MMDiT.Nodes.Tokens", False])
    note.first.wait_for(state="detached")
    comfy.run(SET, ["MMDiT.Nodes.Tokens", True])
    note.first.wait_for(state="attached")
    comfy.page.get_by_text("CLIP-L 14").first.wait_for(state="attached")
    comfy.wait_stable()
    assert [each["size"] for each in comfy.graph()["nodes"]] == size


COLOURS = """(type) => {
    const saved = (node) => node.serialize().color ?? null;
    const node = LiteGraph.createNode(type);
    app.graph.add(node);
    const fresh = saved(node);
    node.color = undefined; // as the menu's "No color"
    const copy = LiteGraph.createNode(type);
    copy.configure(node.serialize());
    node.color = "#123456";
    const other = LiteGraph.createNode(type);
    other.configure(node.serialize());
    return { fresh, plain: saved(copy), own: saved(other) };
}"""


def test_a_new_node_has_a_coloured_title_and_a_saved_one_keeps_its_own(comfy):
    ours = [name for name, node in comfy.server.object_info().items() if node["category"].startswith("MMDiT")]
    found = {name: comfy.run(COLOURS, name) for name in ours}
    assert all(each["fresh"] for each in found.values()), found
    assert found["BlockSkip"]["fresh"] == found["TextBoost"]["fresh"] != found["FlowMatchingSampler"]["fresh"]
    assert {(each["plain"], each["own"]) for each in found.values()} == {(None, "#123456")}
    for path in sorted((ROOT / "workflows").glob("*.json")):
        nodes = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] in ours]
        assert [node["color"] for node in nodes] == [found[node["type"]]["fresh"] for node in nodes], path.name
    comfy.run(SET, ["MMDiT.Nodes.Colours", False])
    assert {comfy.run(COLOURS, name)["fresh"] for name in ours} == {None}


def test_the_settings_are_in_the_dialog(comfy, test_output):
    comfy.run("() => void app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    dialog = comfy.page.get_by_role("dialog")
    dialog.get_by_text("MMDiT", exact=True).first.click()
    for text in (
        "Blocks as a strip",
        "Count tokens while typing",
        "Coloured titles",
        "Steps",
        "Guidance (cfg)",
        "Solver",
    ):
        dialog.get_by_text(text, exact=True).first.wait_for()
    comfy.page.screenshot(path=test_output / f"settings-{comfy.renderer}.png")
    comfy.page.keyboard.press("Escape")
    dialog.first.wait_for(state="detached")
