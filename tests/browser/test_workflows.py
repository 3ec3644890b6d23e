"""The shared workflows and the pack's nodes in both renderers: they open without overlaps, run, and are drawn.

All tests share one page. The screenshots are in .test-output/.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.environment import ROOT
from scripts.make_workflows import PREVIEW, PREVIEWING
from scripts.workflow_specs import WORKFLOWS
from tests.browser.conftest import TOAST

SPECS = {sheet.name: sheet for sheet in WORKFLOWS}
FILES = sorted((ROOT / "workflows").glob("*.json"))
RUN = ("boost-a-phrase", "speed-plan", "per-block-prompt")

# Node -> its box on the canvas: left, top, right, bottom, title included.
BOXES = """() => Object.fromEntries(app.graph._nodes.map((node) => {
    const html = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    const { scale } = app.canvas.ds;
    const [x, y, width, height] = node.getBounding();
    const name = `${node.id} ${node.type}`;
    if (!html) return [name, [x, y, x + width, y + height]];
    const [left, top] = app.clientPosToCanvasPos([html.left, html.top]);
    return [name, [left, top, left + html.width / scale, top + html.height / scale]];
}))"""
PREVIEWS = (
    """() => app.graph._nodes.filter((node) => node.type === "FlowMatchingSampler" && node.imgs?.length).length"""
)
OPEN = f"""() => [...document.querySelectorAll("{TOAST}, [role=dialog], [role=alertdialog]")]
    .map((each) => each.innerText)"""
OURS = """(pack) => Object.entries(LiteGraph.registered_node_types)
    .filter(([, type]) => type.nodeData?.python_module === `custom_nodes.${pack}`).map(([name]) => name)"""
ALONE = """(type) => {
    app.graph.clear();
    const node = LiteGraph.createNode(type);
    node.pos = [60, 140];
    app.graph.add(node);
    app.canvas.ds.scale = 1;
    app.canvas.ds.offset = [0, 0];
    app.canvas.setDirty(true, true);
}"""


@pytest.fixture
def comfy(shared):
    shared.console_errors.clear()
    yield shared
    assert shared.pack_errors() == []


def boxes(comfy) -> dict[str, list[float]]:
    """Boxes of all nodes, after everything is drawn; nodes off screen are not drawn completely."""
    comfy.fit()
    return comfy.wait_stable(BOXES)


def overlapping(found: dict[str, list[float]]) -> list[tuple[str, str]]:
    pairs = []
    names = list(found)
    for index, one in enumerate(names):
        left, top, right, bottom = found[one]
        for other in names[:index]:
            other_left, other_top, other_right, other_bottom = found[other]
            if left < other_right and other_left < right and top < other_bottom and other_top < bottom:
                pairs.append((one, other))
    return pairs


@pytest.mark.frontend(renderer="nodes2")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_workflow_opens_without_warnings_and_without_overlapping_nodes(comfy, path: Path, test_output):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    comfy.load(workflow)
    small = path.stem not in SPECS or SPECS[path.stem].small
    assert comfy.unknown_nodes() == []
    found = boxes(comfy)
    assert overlapping(found) == []
    with_previews = {
        name: [left, top, right, bottom + PREVIEW * (name.split(" ", 1)[1] in PREVIEWING)]
        for name, (left, top, right, bottom) in found.items()
    }
    assert overlapping(with_previews) == [], "no room for the previews of a run, which stay on their node"
    if small:  # the others miss the files named in their notes
        assert comfy.run(OPEN) == []
        assert [text for text in comfy.console_errors if "Content Security Policy" not in text] == []
    opened = {node["id"]: node for node in comfy.graph()["nodes"]}
    for node in workflow["nodes"]:
        values = opened[node["id"]].get("widgets_values", [])
        given = node.get("widgets_values", [])
        assert values[: len(given)] == given, node["type"]
    comfy.page.screenshot(path=test_output / f"workflow-{path.stem}-{comfy.renderer}.png")


@pytest.mark.parametrize("name", RUN)
def test_a_workflow_runs_in_the_frontend(comfy, name: str, test_output):
    comfy.load(ROOT / "workflows" / f"{name}.json")
    before = comfy.run(BOXES)
    images = comfy.server.images(comfy.queue())
    assert len(images) == 2 and all(image[:4] == b"\x89PNG" for image in images)
    assert images[0] != images[1]
    after = boxes(comfy)
    assert overlapping(after) == [], "nodes need room for images and summaries"
    assert before.keys() == after.keys()
    comfy.page.screenshot(path=test_output / f"workflow-{name}-run-{comfy.renderer}.png")


def test_every_node_is_drawn(comfy, test_output):
    names = comfy.run(OURS, ROOT.name)
    assert len(names) >= 10
    comfy.load({"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4})
    for name in names:
        comfy.run(ALONE, name)
        ((left, top, right, bottom),) = comfy.wait_stable(BOXES).values()
        x, y = comfy.run("([x, y]) => app.canvasPosToClientPos([x, y])", [left, top])
        clip = {"x": max(0, x - 12), "y": max(0, y - 12), "width": right - left + 24, "height": bottom - top + 24}
        comfy.page.screenshot(path=test_output / f"node-{name}-{comfy.renderer}.png", clip=clip)
    comfy.run("() => app.graph.clear()")
