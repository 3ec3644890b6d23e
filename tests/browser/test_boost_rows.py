"""The rows of Text Boost: fields with a switch each in place of the text of an input."""

from __future__ import annotations

import json

import pytest

from scripts.frontend import NEWEST
from tests.browser.strips import checked, opened

pytestmark = pytest.mark.frontend

NODE = "const node = app.graph._nodes.find((each) => each.type === 'TextBoost');"
WIDGET = f"{NODE} const rows = node.widgets.find((each) => each.name === 'rows');"
SET = f"(text) => {{ {WIDGET} rows.value = text; }}"
STATE = f"""() => {{
    {WIDGET}
    const panel = node.widgets.find((each) => each.name === "boost_rows");
    const areas = [...document.querySelectorAll("textarea")].filter((each) => each.getClientRects().length);
    return {{ text: rows.value, hidden: Boolean(rows.hidden), height: node.size[1], areas: areas.length,
        fits: LiteGraph.vueNodesMode || !panel || node.size[1] >= panel.y + panel.computeSize()[1] }};
}}"""
ROWS = "on | 3-5 | 2 | red hat\noff | 9 | 0.5 |"


@pytest.fixture
def comfy(shared):
    yield from checked(shared)


@pytest.fixture
def panel(comfy):
    """The group of rows of a new Text Boost."""
    opened(comfy, "TextBoost")
    found = comfy.page.get_by_role("group", name="Further boosts")
    found.wait_for()
    comfy.wait_stable()
    return found


def saved(comfy):
    (node,) = [each for each in comfy.graph()["nodes"] if each["type"] == "TextBoost"]
    return node["widgets_values"]


def undo(comfy):
    comfy.run("() => app.extensionManager.command.execute('Comfy.Undo')")
    comfy.wait_stable()


def test_a_boost_is_added_edited_switched_off_and_deleted(comfy, panel, test_output):
    before = comfy.run(STATE)
    assert before["hidden"] and before["areas"] == 1, "the phrase's alone"
    assert panel.get_by_role("group").count() == 0
    panel.get_by_role("button", name="+ boost").click()
    assert saved(comfy)[-1] == comfy.run(STATE)["text"] == "on |  | 1.5 |"
    comfy.page.keyboard.type("3，9")  # the new row's blocks have the focus
    comfy.page.keyboard.press("Tab")
    comfy.page.keyboard.press("ArrowUp")
    comfy.page.keyboard.press("Tab")
    comfy.page.keyboard.type("red | 帽子")
    comfy.page.keyboard.press("Enter")
    row = panel.get_by_role("group", name="Boost 1")
    assert row.get_by_label("Blocks").input_value() == "3,9"
    assert saved(comfy)[-1] == "on | 3,9 | 1.55 | red | 帽子"
    row.get_by_label("Strength").fill("12")
    row.get_by_label("Blocks").fill("0|1")
    row.get_by_role("switch").press("Space")
    assert saved(comfy)[-1] == "off | 0,1 | 10 | red | 帽子" and len(saved(comfy)) == 12
    panel.get_by_role("button", name="+ boost").press("Enter")
    comfy.wait_stable()
    comfy.page.screenshot(path=test_output / f"rows-{comfy.renderer}.png")
    now = comfy.run(STATE)
    assert now["hidden"] and now["areas"] == 1 and now["fits"] and now["height"] >= before["height"]
    assert comfy.prompt()[str(comfy.run(f"() => {{ {NODE} return node.id; }}"))]["inputs"]["rows"] == now["text"]
    row.get_by_role("button", name="Delete this boost").press("Delete")
    assert panel.get_by_role("group").count() == 2, "the key deletes neither the row nor the node"
    row.get_by_role("button", name="Delete this boost").click()
    assert saved(comfy)[-1] == "on |  | 1.5 |"
    row.get_by_role("button", name="Delete this boost").click()
    comfy.wait_stable()
    assert saved(comfy)[-1] == "" and comfy.run(STATE)["height"] < before["height"] + 2


def test_each_change_is_one_step_of_undo_and_a_saved_graph_has_its_rows(comfy, panel):
    comfy.run(SET, ROWS)
    row = panel.get_by_role("group", name="Boost 2")
    comfy.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.()")
    row.get_by_role("switch").click()
    row.get_by_label("Phrase").fill("blue")
    row.get_by_label("Phrase").press("Enter")
    assert saved(comfy)[-1] == "on | 3-5 | 2 | red hat\non | 9 | 0.5 | blue"
    kept = json.loads(json.dumps(comfy.graph()))
    undo(comfy)
    assert saved(comfy)[-1] == "on | 3-5 | 2 | red hat\non | 9 | 0.5 |"
    undo(comfy)
    assert saved(comfy)[-1] == ROWS
    row.get_by_role("switch").wait_for()
    assert not row.get_by_role("switch").is_checked() and row.get_by_label("Phrase").input_value() == ""
    row.get_by_role("switch").click()
    assert saved(comfy)[-1] == "on | 3-5 | 2 | red hat\non | 9 | 0.5 |", "the row in the page is the node's"
    comfy.load(kept)
    assert row.get_by_label("Phrase").input_value() == "blue" and comfy.run(STATE)["fits"]
    assert saved(comfy) == next(each for each in kept["nodes"] if each["type"] == "TextBoost")["widgets_values"]


def test_a_text_that_cannot_be_read_stays_and_is_shown_as_text(comfy, panel, test_output):
    wrong = "on | 3 | 2 |\nmy notes"
    comfy.run(SET, wrong)
    panel.wait_for(state="detached")
    comfy.wait_stable()
    comfy.page.screenshot(path=test_output / f"rows-unreadable-{comfy.renderer}.png")
    now = comfy.run(STATE)
    assert not now["hidden"] and now["areas"] == 2 and now["text"] == wrong == saved(comfy)[-1]
    comfy.load(comfy.graph())
    assert saved(comfy)[-1] == wrong and panel.count() == 0
    comfy.run(SET, ROWS)
    panel.get_by_role("group", name="Boost 2").wait_for()
    comfy.wait_stable()
    assert comfy.run(STATE)["hidden"] and comfy.run(STATE)["areas"] == 1


def test_linked_rows_are_not_edited_on_the_node(comfy, panel, test_output):
    comfy.run(SET, ROWS)
    comfy.run(f"""() => {{
        {NODE}
        const text = LiteGraph.createNode("PrimitiveString");
        app.graph.add(text);
        text.pos = [60, 400];
        text.connect(0, node, node.inputs.findIndex((input) => input.name === "rows"));
    }}""")
    panel.wait_for(state="detached")
    comfy.wait_stable()
    comfy.page.screenshot(path=test_output / f"rows-linked-{comfy.renderer}.png")
    now = comfy.run(STATE)
    hidden = comfy.server.frontend == NEWEST  # newer frontends hide every linked text area
    assert not now["hidden"] and now["areas"] == (1 if hidden else 2) and now["text"] == ROWS
    comfy.run(f"() => {{ {NODE} node.disconnectInput(node.inputs.findIndex((input) => input.name === 'rows')); }}")
    panel.get_by_role("group", name="Boost 1").wait_for()
    assert saved(comfy)[-1] == ROWS
