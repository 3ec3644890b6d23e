"""The block strip in its graph, in both renderers: the model upstream, files, pictures, subgraphs, analyses."""

from __future__ import annotations

import json
import time

import pytest

from tests.browser.strips import (
    FLUX,
    KREA,
    MEDIUM,
    SMALL,
    Strip,
    add_analysis,
    checked,
    clear_hover_texts,
    graph,
    opened,
    write_headers,
)

pytestmark = pytest.mark.frontend

# The strips of a subgraph's node: in its list of widgets, and visible in the page.
DRAWN = """(type) => ({
    listed: app.graph._nodes.find((node) => node.type === type).widgets.map((widget) => widget.name),
    drawn: [...document.querySelectorAll(".mmdit-blocks")].filter((each) => each.checkVisibility()).length,
})"""


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


def test_a_saved_workflow_loads_with_its_values_in_order(comfy):
    strip = opened(comfy, "TextBoost", "BlockSkip", "TextDisable")
    strip.set("2:1.5, 7-9:2")
    Strip(comfy, "BlockSkip").set("even")
    saved = comfy.graph()
    values = {node["type"]: node["widgets_values"] for node in saved["nodes"]}
    assert values["TextBoost"] == [
        "2:1.5, 7-9:2", 1.5, "residual", "", "all", "both", 0, 1, "constant", "none", "", ""
    ]  # fmt: skip
    assert values["BlockSkip"] == ["even", "negative", 0, 1, "none", ""]
    assert values["TextDisable"] == ["", "onward", "both", 0, 1]
    comfy.load(graph("BlockPrompt"))
    comfy.load(json.loads(json.dumps(saved)))
    strip.until("s.cells === 24 && s.chosen.length === 4")
    assert strip.value() == "2:1.5, 7-9:2" and Strip(comfy, "BlockSkip").value() == "even"
    assert comfy.graph()["nodes"][1]["widgets_values"] == values["TextBoost"]


def test_an_image_restores_its_strips(comfy, tmp_path):
    image = [
        {"id": 8, "type": "EmptyImage", "pos": [60, 420], "widgets_values": [64, 48, 1, 255],
         "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [9]}]},
        {"id": 9, "type": "SaveImage", "pos": [400, 420], "widgets_values": ["strip"],
         "inputs": [{"name": "images", "type": "IMAGE", "link": 9}]},
    ]  # fmt: skip
    made = graph("BlockSkip")
    made = {**made, "last_node_id": 9, "last_link_id": 9, "nodes": made["nodes"] + image}
    comfy.load({**made, "links": [*made["links"], [9, 8, 0, 9, 0, "IMAGE"]]})
    strip = Strip(comfy, "BlockSkip")
    strip.set("3-5, 11")
    (image,) = comfy.server.images(comfy.queue())
    comfy.load(graph("TextDisable"))
    drop = """(bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "strip.png", { type: "image/png" }));
        const canvas = app.canvas.canvas;
        canvas.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    comfy.run(drop, list(image))
    comfy.page.wait_for_function("app.graph._nodes.some((node) => node.type === 'BlockSkip')")
    strip.until("s.chosen.length === 4")
    assert strip.value() == "3-5, 11"


def test_the_strip_has_a_cell_for_each_block_of_the_model_upstream(comfy):
    strip = opened(comfy, "BlockSkip", cells=57, file=FLUX)
    assert strip.state()["rows"] == [19, 38]
    height, size = strip.state()["height"], strip.state()["size"]
    strip.click(22)
    assert strip.value() == "22" and strip.state(22)["label"] == "block 22 (single s3) · skip"
    choose = "(name) => { const w = app.graph._nodes[0].widgets[0]; w.value = name; w.callback?.(name); }"
    comfy.run(choose, MEDIUM)
    strip.mouse.move(*strip.place(0))
    strip.until("s.cells === 24")
    comfy.run(choose, "nowhere.safetensors")
    strip.mouse.move(600, 700)
    strip.mouse.move(*strip.place(0))
    strip.until("s.foot.startsWith('block 0') || s.cells === 24")
    assert strip.state()["cells"] == 24 and strip.state()["chosen"] == [22]
    assert strip.state()["height"] == height and strip.state()["size"] == size, "the node keeps its size"


def test_the_model_is_found_through_other_nodes_and_loaders(comfy):
    strip = opened(comfy, "BlockSkip", cells=8, loader="MMDiTLoader", file=SMALL)
    insert = """() => {
        const [loader, skip] = app.graph._nodes;
        const shift = LiteGraph.createNode("ModelSamplingSD3");
        const reroute = LiteGraph.createNode("Reroute");
        for (const node of [shift, reroute]) app.graph.add(node);
        loader.connect(0, reroute, 0);
        reroute.connect(0, shift, 0);
        shift.connect(0, skip, 0);
    }"""
    comfy.run(insert)
    strip.wait_stable()
    assert strip.state()["cells"] == 8
    comfy.run("() => app.graph._nodes.find((n) => n.type === 'Reroute').disconnectInput(0)")
    strip.mouse.move(*strip.place(3))
    strip.until("s.cells === 24")
    assert strip.value() == ""


# Nodes of other packs, as their frontend scripts and servers define them.
OTHERS = """() => {
    const register = (type, build) => {
        if (LiteGraph.registered_node_types[type]) return;
        LiteGraph.registerNodeType(type, class extends LiteGraph.LGraphNode {
            constructor(title) {
                super(title);
                build(this);
            }
        });
    };
    register("DiffusionModelLoaderKJ", (node) => {
        node.addWidget("combo", "clip_name", "strip-flux.safetensors", () => {}, { values: [] });
        node.addWidget("combo", "model_name", "strip-krea.safetensors", () => {}, { values: [] });
        node.addOutput("MODEL", "MODEL");
    });
    for (const [type, slot] of [["SetNode", "addInput"], ["GetNode", "addOutput"]])
        register(type, (node) => {
            node.addWidget("text", "Constant", "model", () => {});
            node[slot]("MODEL", "*");
        });
    register("Any Switch (rgthree)", (node) => {
        for (const name of ["any_01", "any_02"]) node.addInput(name, "*");
        node.addOutput("*", "*");
    });
    const add = (type) => {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        return node;
    };
    const skip = app.graph._nodes.find((node) => node.type === "BlockSkip");
    const [loader, set, get, any] = ["DiffusionModelLoaderKJ", "SetNode", "GetNode", "Any Switch (rgthree)"].map(add);
    loader.connect(0, set, 0);
    get.connect(0, any, 1);
    any.connect(0, skip, 0);
}"""


def test_the_model_is_found_through_another_packs_loader_set_get_and_switch(comfy):
    strip = opened(comfy, "BlockSkip")
    comfy.run(OTHERS)
    strip.until("s.cells === 28")
    comfy.run("() => { app.graph._nodes.find((node) => node.type === 'SetNode').widgets[0].value = 'another'; }")
    strip.mouse.move(600, 700)
    strip.mouse.move(*strip.place(0))
    strip.until("s.cells === 24")


def test_a_gguf_loader_has_its_files_in_a_folder_of_its_own(comfy):
    strip = opened(comfy, "BlockSkip")
    flux = {"sections": [{"name": "double", "count": 19}, {"name": "single", "count": 38}], "refiners": []}
    pattern = "**/mmdit/blocks?name=flux1-dev-Q4_K_S.gguf&folder=unet_gguf"
    comfy.page.route(pattern, lambda route: route.fulfill(json={**flux, "double": 19, "single": 38, "family": None}))
    comfy.run("""() => {
        const node = LiteGraph.createNode("UNETLoader");
        node.type = "UnetLoaderGGUF";
        app.graph.add(node);
        node.widgets[0].value = "flux1-dev-Q4_K_S.gguf";
        node.connect(0, app.graph._nodes.find((each) => each.type === "BlockSkip"), 0);
    }""")
    strip.until("s.cells === 57")
    comfy.page.unroute(pattern)


# The loader in a subgraph, whose `unet_name` is promoted.
ENCLOSED = """(file) => {
    const loader = app.graph._nodes.find((node) => node.type === "UNETLoader");
    const { node, subgraph } = app.graph.convertToSubgraph(new Set([loader]));
    const inner = subgraph._nodes[0];
    const slot = inner.inputs.find((input) => input.name === "unet_name");
    subgraph.addInput("unet_name", "COMBO").connect(slot, inner);
    const input = node.inputs.find(({ name }) => name === "unet_name");
    node.getWidgetFromSlot(input).value = file;
    return inner.widgets.find(({ name }) => name === "unet_name").value;
}"""


def test_the_file_is_the_one_that_a_subgraph_chooses(comfy):
    strip = opened(comfy, "BlockSkip")
    comfy.run(ENCLOSED, KREA)
    strip.mouse.move(600, 700)
    strip.mouse.move(*strip.place(0))
    strip.until("s.cells === 28")


def test_linked_blocks_leave_no_hole_in_the_node(comfy, test_output):
    strip = opened(comfy, "TextBoost")
    comfy.run("""() => {
        const text = LiteGraph.createNode("PrimitiveString");
        app.graph.add(text);
        text.pos = [60, 400];
        text.widgets[0].value = "2:1.5, 7-9:2";
        const boost = app.graph._nodes.find((node) => node.type === "TextBoost");
        text.connect(0, boost, boost.inputs.findIndex((input) => input.name === "blocks"));
    }""")
    strip.until("s.chosen.join() === '2,7,8,9'")
    strip.wait_stable()
    comfy.page.screenshot(path=test_output / f"strip-linked-{comfy.renderer}.png")
    assert strip.state(7)["label"] == "block 7 · boost × 2"
    assert strip.state()["height"] > 60 and strip.state()["at"][3] > 10, "its cells are visible"


@pytest.mark.parametrize("promoted", [False, True])
def test_the_strip_works_in_a_subgraph_and_promoted_out_of_it(comfy, promoted, test_output):
    strip = opened(comfy, "BlockSkip", cells=8, loader="MMDiTLoader", file=SMALL)
    strip.set("0-2")
    enclose = """(promoted) => {
        const skip = app.graph._nodes.find((node) => node.type === "BlockSkip");
        const { node, subgraph } = app.graph.convertToSubgraph(new Set([skip]));
        node.pos = [420, 120];
        node.size = [330, 200];
        const inner = subgraph._nodes[0];
        const slot = inner.inputs.find((input) => input.name === "blocks");
        if (promoted) subgraph.addInput("blocks", "STRING").connect(slot, inner);
        else app.canvas.setGraph(subgraph);
        app.canvas.ds.scale = 1;
        app.canvas.ds.offset = promoted ? [0, 0] : [-inner.pos[0] + 400, -inner.pos[1] + 200];
        return node.type;
    }"""
    outer = comfy.run(enclose, promoted)
    strip = Strip(comfy, outer if promoted else "BlockSkip")
    find = "(t) => { for (const g of [app.rootGraph, ...app.rootGraph.subgraphs.values()]) for (const n of g._nodes)"
    value = find + " if (n.type === t) return n.widgets.find((w) => w.name === 'blocks').value; }"
    strip.until("s.cells === 8")
    strip.wait_stable()
    strip.drag(5, 6)
    assert comfy.run(value, strip.node) == "0-2, 5-6"
    (prompt,) = [node for node in comfy.prompt().values() if node["class_type"] == "BlockSkip"]
    assert prompt["inputs"]["blocks"] == "0-2, 5-6"
    saved = comfy.graph()
    comfy.run("() => app.canvas.setGraph(app.rootGraph)")
    for reopen in (lambda: None, comfy.reload):
        reopen()
        comfy.load(saved)
        assert comfy.run(value, strip.node) == "0-2, 5-6"
        if not promoted:
            continue
        strip.until("s.chosen.join() === '0,1,2,5,6'")
        strip.wait_stable()
        assert comfy.run(DRAWN, outer) == {"listed": ["blocks"], "drawn": 1}
    if promoted:
        comfy.page.screenshot(path=test_output / f"strip-promoted-{comfy.renderer}.png")
        strip.click(3)
        assert comfy.run(value, strip.node) == "0-3, 5-6", "the strip that is drawn is the one in use"


def test_a_finished_analysis_colours_the_blocks(comfy):
    made = graph("BlockSkip", loader="MMDiTLoader", file=SMALL)
    comfy.load(made)
    # ComfyUI does not run again what it has run.
    add_analysis(comfy, operations="skip", blocks="0-1", steps=1, cfg=1, seed=time.time_ns() % 1_000_000)
    strip = Strip(comfy, "BlockSkip")
    assert strip.state()["measured"] == 0
    comfy.queue()
    strip.until("s.measured === 2")
    label = strip.state(1)["label"]
    assert label.startswith("block 1 · effect 0.")
    saved = comfy.graph()
    comfy.load(graph("TextBoost"))
    comfy.load(saved)
    strip.until("s.measured === 2", 1)
    assert strip.state(1)["label"] == label, "the report is saved in the workflow"


def test_strips_are_drawn_inside_their_nodes(comfy, test_output):
    strip = opened(comfy, "TextBoost", "BlockSkip", "TextDisable")
    strip.set("2:1.5, 3:2, 4:0.5, 5, 7-8:3, 20:6")
    Strip(comfy, "BlockSkip").set("0-5, 9")
    Strip(comfy, "TextDisable").set("late, frog")
    strip.mouse.move(*strip.place(3))
    strip.until("s.foot === 'block 3 · boost × 2'", 3)
    comfy.page.screenshot(path=test_output / f"strip-{comfy.renderer}.png")
    # docs/strip.png is the classic renderer's.
    comfy.run("() => { app.canvas.ds.scale = 1.6; app.canvas.ds.offset = [-250, -20]; }")
    strip.wait_stable()
    clear_hover_texts(comfy)  # they would cover the node
    x, y, width, height = comfy.run("() => app.graph._nodes[1].getBounding()")
    left, top = comfy.run("([x, y]) => app.canvasPosToClientPos([x, y])", [x, y])
    clip = {"x": left - 8, "y": top - 8, "width": 1.6 * width + 16, "height": min(1.6 * height + 16, 900 - top)}
    comfy.page.screenshot(path=test_output / f"readme-strip-{comfy.renderer}.png", clip=clip)
    strip.unzoom()
    # The strip is inside its node, above the next widget.
    box = comfy.run(
        """() => {
            const node = app.graph._nodes.find((each) => each.type === "BlockSkip");
            const [widget, below] = node.widgets;
            const strip = widget.element.getBoundingClientRect();
            const [x, y] = app.canvasPosToClientPos([node.pos[0], node.pos[1]]);
            const html = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
            const left = html?.left ?? x;
            const right = html?.right ?? x + node.size[0];
            const under = html
                ? strip.bottom
                : app.canvasPosToClientPos([0, node.pos[1] + below.y])[1];
            return { strip: [strip.left, strip.right, strip.bottom], node: [left, right, under] };
        }"""
    )
    assert box["node"][0] < box["strip"][0] < box["strip"][1] < box["node"][1]
    assert box["strip"][2] <= box["node"][2]
