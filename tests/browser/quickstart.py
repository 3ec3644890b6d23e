"""Helpers of the tests that open the quickstart workflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

WORKFLOW = Path(__file__).parents[2] / "workflows" / "quickstart.json"

OF = "const of = (type) => app.graph._nodes.find((node) => node.type === type);"
# Sets inputs of a node as its widgets do.
SET = f"""([type, values]) => {{
    {OF}
    for (const [name, value] of Object.entries(values)) {{
        const widget = of(type).widgets.find((each) => each.name === name);
        widget.value = value;
        widget.callback?.(value);
    }}
}}"""
# Inserts a block node before the sampler, after other block nodes.
ADD = f"""([type, values]) => {{
    {OF}
    const sampler = of("FlowMatchingSampler");
    const from = sampler.inputs[0].link;
    const link = app.graph.links.get?.(from) ?? app.graph.links[from];
    const control = LiteGraph.createNode(type);
    control.pos = [40, 1300 + 40 * app.graph._nodes.length];
    app.graph.add(control);
    app.graph.getNodeById(link.origin_id).connect(link.origin_slot, control, 0);
    control.connect(0, sampler, 0);
    for (const [name, value] of Object.entries(values))
        control.widgets.find((widget) => widget.name === name).value = value;
    app.api.dispatchCustomEvent("graphChanged", {{}});
}}"""
# The text of a run on a node, in a subgraph too, line by line; null if it has none in view.
RUN_TEXT = """(type) => {
    const nodes = [app.graph, ...app.graph.subgraphs.values()].flatMap((graph) => graph._nodes);
    const element = nodes.find((node) => node.type === type).widgets.find((widget) => widget.name === "run")?.element;
    return element?.checkVisibility() ? element.innerText.split("\\n") : null;
}"""
NEAR = f"""(type) => {{
    {OF}
    const node = of(type);
    app.canvas.ds.scale = 0.9;
    app.canvas.ds.offset = [500 - node.pos[0], 300 - node.pos[1]];
}}"""
# The position of a node's title once it can be clicked: nothing covers it, and Nodes 2.0 has drawn it.
TITLE = f"""(type) => {{
    {OF}
    const node = of(type);
    const [x, y] = app.canvasPosToClientPos([node.pos[0] + 60, node.pos[1] - 15]);
    const on = document.elementFromPoint(x, y);
    const drawn = LiteGraph.vueNodesMode
        ? on?.closest("[data-node-id]")?.dataset.nodeId === String(node.id)
        : on === app.canvas.canvas;
    return drawn ? [x, y] : null;
}}"""
CHOSEN = "(type) => [...app.canvas.selectedItems].map((item) => item.type).join() === type"


def title(comfy, node: str) -> list[float]:
    """Zoom to a node. Returns: the position of its title."""
    comfy.run(NEAR, node)
    return comfy.wait_stable(TITLE, node)


def compare_by_toolbox(comfy, node: str, name: str) -> None:
    """Select a block node by a click and press the comparison's button."""
    comfy.page.mouse.click(*title(comfy, node))
    comfy.page.wait_for_function(CHOSEN, arg=node)
    comfy.page.locator(".selection-toolbox").get_by_role("button", name=name).click()


def fresh(shared, *, steps: int, timeout: int) -> Iterator:
    """The page with the shipped quickstart at another number of steps; afterwards the console has no error of the pack.

    Args: timeout of each wait, in milliseconds.
    """
    shared.console_errors.clear()
    shared.page.set_default_timeout(timeout)
    shared.load(WORKFLOW)
    shared.run(SET, ["FlowMatchingSampler", {"steps": steps}])
    yield shared
    assert shared.pack_errors() == []
