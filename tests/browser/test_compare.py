"""Compare with and without a block node, in both renderers; the graph does not change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.browser.conftest import TOAST
from tests.browser.quickstart import ADD, OF, SET, compare_by_toolbox, fresh, title

NAME = "Compare with and without"

PIXELS = """(which) => {
    const image = document.querySelector(`.mmdit-stage img.${which}`);
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
}"""
# Records the test's own changes as one undo step, and counts the steps; a comparison must not add one.
UNDOS = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
    return tracker.undoQueue.length;
}"""


@pytest.fixture
def comfy(shared):
    yield from fresh(shared, steps=3, timeout=60_000)


def work(comfy) -> dict:
    return made(comfy.graph())


def made(graph: dict) -> dict:
    """The user's part of a graph: everything except the view, the order, and the sizes, which notes change."""
    nodes = [plain({**node, "size": None, "order": None}) for node in graph["nodes"]]
    return {"nodes": sorted(nodes, key=lambda node: node["id"]), "links": graph["links"], "groups": graph["groups"]}


def plain(value):
    """A value without nulls: undo states leave out what a graph writes as null."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if each is not None}
    return [plain(each) for each in value] if isinstance(value, list) else value


def boost(comfy) -> None:
    comfy.run(ADD, ["TextBoost", {"blocks": "all", "strength": 6.0, "mode": "attention"}])


def wait_for_graph(comfy) -> None:
    """Wait until the graph is stable: after a run, nodes store the texts of the run."""
    comfy.wait_stable("() => app.graph.serialize()")


def choose(comfy, node: str = "TextBoost") -> None:
    """Choose the entry in a node's context menu."""
    comfy.page.keyboard.press("Escape")
    comfy.page.mouse.click(*title(comfy, node), button="right")
    # The toolbox's button has a tooltip with the same text.
    other = comfy.page.locator(":not([role=tooltip], [role=tooltip] *)")
    entry = comfy.page.get_by_text(NAME, exact=True).and_(other)
    if not entry.first.is_visible():  # Nodes 2.0 adds entries of extensions at the end of a long menu
        entry.first.scroll_into_view_if_needed()
    entry.first.click()


def overlay(comfy):
    comfy.page.wait_for_selector("dialog.mmdit-compare[open]")
    comfy.page.wait_for_function(
        "() => [...document.querySelectorAll('.mmdit-stage img')].every((each) => each.complete && each.naturalWidth)"
    )
    return comfy.page.locator("dialog.mmdit-compare")


def percent(comfy) -> float:
    return comfy.run("() => Number(document.querySelector('.mmdit-stage input').value)")


def test_compare_shows_both_images_and_does_not_change_the_graph(comfy, test_output):
    boost(comfy)
    record = comfy.queue()
    wait_for_graph(comfy)
    graph, undos = work(comfy), comfy.run(UNDOS)
    saved = sorted(path.name for path in (comfy.server.base / "output").iterdir())
    comfy.run("""() => {
        globalThis.cached = [];
        app.api.addEventListener("execution_cached", ({ detail }) => cached.push(...detail.nodes));
    }""")
    choose(comfy)
    dialog = overlay(comfy)
    assert work(comfy) == graph and comfy.run(UNDOS) == undos
    assert sorted(path.name for path in (comfy.server.base / "output").iterdir()) == saved, "nothing is saved"
    sampler, encode, skipped = (
        next(str(node["id"]) for node in graph["nodes"] if node["type"] == kind)
        for kind in ("FlowMatchingSampler", "TripleTextEncode", "TextBoost")
    )
    cached = set(comfy.run("() => cached"))
    assert {sampler, encode, skipped} <= cached, "the existing half comes from the cache"
    first, second = comfy.run(PIXELS, "with"), comfy.run(PIXELS, "without")
    assert first != second
    assert first == decoded(comfy.server.images(record)[0]), "the image of the last run"
    dialog.screenshot(path=test_output / f"compare-overlay-{comfy.renderer}.png")
    comfy.page.screenshot(path=test_output / f"compare-{comfy.renderer}.png")
    comfy.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert work(comfy) == graph

    # A run without the node gives the other half.
    comfy.run(f"() => {{ {OF} of('TextBoost').mode = 4; }}")
    assert second == decoded(comfy.server.images(comfy.queue())[0])


def decoded(png: bytes) -> list[int]:
    import io

    from PIL import Image

    return list(Image.open(io.BytesIO(png)).convert("RGBA").tobytes())


def test_the_slider_works_by_mouse_and_keyboard(comfy):
    boost(comfy)
    choose(comfy)
    dialog = overlay(comfy)
    box = dialog.locator(".mmdit-stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    comfy.page.mouse.move(box["x"] + box["width"] / 2, middle)
    comfy.page.mouse.down()
    comfy.page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=4)
    assert percent(comfy) == pytest.approx(20, abs=1)
    comfy.page.mouse.move(box["x"] - 60, middle, steps=2)
    assert percent(comfy) == 0, "the drag continues beyond the edge"
    comfy.page.mouse.up()
    comfy.page.mouse.move(box["x"] + box["width"] * 0.7, middle)
    assert percent(comfy) == 0, "the drag ends with the button"
    slider = dialog.get_by_role("slider")
    comfy.page.keyboard.press("End")
    assert percent(comfy) == 100
    for _ in range(3):
        comfy.page.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "97% with, 3% without"
    clip = comfy.run("() => getComputedStyle(document.querySelector('.mmdit-stage img.with')).clipPath")
    assert "3%" in clip
    assert dialog.get_attribute("aria-label") == "With and without Text Boost"
    assert {image.get_attribute("alt") for image in dialog.locator("img").all()} == {
        "With and without Text Boost: with",
        "With and without Text Boost: without",
    }
    nodes = len(comfy.graph()["nodes"])
    comfy.page.keyboard.press("Delete")
    assert len(comfy.graph()["nodes"]) == nodes, "ComfyUI's shortcuts are disabled"
    dialog.get_by_role("button", name="Close").click()
    dialog.wait_for(state="detached")


def test_a_batch_has_a_page_for_each_image(comfy):
    boost(comfy)
    comfy.run(SET, ["EmptySD3LatentImage", {"batch_size": 2}])
    choose(comfy)
    dialog = overlay(comfy)
    assert "1 of 2" in dialog.inner_text()
    before = dialog.locator("img.with").get_attribute("src")
    dialog.get_by_role("button", name="Next image").click()
    assert "2 of 2" in dialog.inner_text() and dialog.locator("img.with").get_attribute("src") != before
    comfy.page.keyboard.press("Escape")


def test_a_seed_that_changed_after_the_run_is_compared_as_it_ran(comfy):
    boost(comfy)
    comfy.run(SET, ["FlowMatchingSampler", {"seed": 11, "control_after_generate": "increment"}])
    record = comfy.queue()
    after = next(n for n in comfy.graph()["nodes"] if n["type"] == "FlowMatchingSampler")["widgets_values"][0]
    assert after == 12
    choose(comfy)
    overlay(comfy)
    assert comfy.run(PIXELS, "with") == decoded(comfy.server.images(record)[0])
    comfy.page.keyboard.press("Escape")
    assert next(n for n in comfy.graph()["nodes"] if n["type"] == "FlowMatchingSampler")["widgets_values"][0] == after


def test_the_command_leaves_out_all_selected_block_nodes(comfy):
    boost(comfy)
    comfy.run(ADD, ["BlockSkip", {"blocks": "2-5", "branch": "both"}])
    comfy.run(f"""() => {{
        {OF}
        app.canvas.selectItems([of("TextBoost"), of("BlockSkip"), of("VAEDecode")]);
        void app.extensionManager.command.execute("MMDiT.Compare");
    }}""")
    dialog = overlay(comfy)
    both = comfy.run(PIXELS, "without")
    comfy.page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    comfy.run(f"() => {{ {OF} of('TextBoost').mode = 4; of('BlockSkip').mode = 4; }}")
    assert both == decoded(comfy.server.images(comfy.queue())[0])


def test_the_selection_toolbox_of_a_block_node_offers_the_comparison(comfy):
    boost(comfy)
    compare_by_toolbox(comfy, "TextBoost", NAME)
    overlay(comfy)
    comfy.page.keyboard.press("Escape")


CLOSE = ".p-toast-close-button, [data-testid=toast-close]"  # of a TOAST


def toast(comfy) -> str:
    shown = comfy.page.locator(TOAST).first
    text = shown.inner_text()
    for button in reversed(comfy.page.locator(CLOSE).all()):
        button.click()
    shown.wait_for(state="detached")  # it fades out
    return text


@pytest.mark.frontend
def test_a_message_appears_if_no_image_depends_on_the_node(comfy):
    boost(comfy)
    comfy.run(f"() => {{ {OF} of('TextBoost').mode = 4; }}")
    choose(comfy)
    assert "No image depends on Text Boost" in toast(comfy)
    assert comfy.page.locator("dialog.mmdit-compare").count() == 0


@pytest.mark.frontend
def test_a_failed_comparison_does_not_change_the_graph(comfy):
    boost(comfy)
    comfy.run(SET, ["TextBoost", {"phrase": "purple elephant"}])
    wait_for_graph(comfy)
    graph, undos = work(comfy), comfy.run(UNDOS)
    choose(comfy)
    assert "The comparison ended with an error" in (text := toast(comfy)) and "purple elephant" in text
    assert work(comfy) == graph
    comfy.run(UNDOS)
    steps = comfy.run("() => app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue")[undos:]
    assert all(made(state) == graph for state in steps), "the error's note may change the node's height only"
    assert comfy.page.locator(".mmdit-running").count() == 0
    comfy.page.keyboard.press("Escape")
    comfy.run(SET, ["TextBoost", {"phrase": "", "blocks": "99"}])
    choose(comfy)
    assert "This model has blocks 0 to 7" in toast(comfy)


@pytest.mark.frontend
def test_a_cancelled_comparison_does_not_change_the_graph(comfy):
    boost(comfy)
    comfy.run(SET, ["FlowMatchingSampler", {"steps": 2000}])
    wait_for_graph(comfy)
    graph, undos = work(comfy), comfy.run(UNDOS)
    choose(comfy)
    bar = comfy.page.locator(".mmdit-running")
    bar.get_by_text("step ").wait_for()
    assert bar.inner_text().startswith("Rendering without Text Boost: step")
    bar.get_by_role("button", name="Cancel").click()
    assert "The comparison was cancelled" in toast(comfy)
    assert bar.count() == 0 and work(comfy) == graph and comfy.run(UNDOS) == undos
    assert comfy.page.locator("dialog.mmdit-compare").count() == 0


def test_a_block_node_in_a_subgraph_can_be_compared(comfy):
    boost(comfy)
    comfy.run(f"""() => {{
        {OF}
        app.canvas.selectItems([of("TextBoost"), of("FlowMatchingSampler")]);
        const {{ node }} = app.graph.convertToSubgraph(app.canvas.selectedItems);
        const boost = node.subgraph._nodes.find((each) => each.type === "TextBoost");
        app.canvas.setGraph(node.subgraph);
        app.canvas.selectItems([boost]);
        void app.extensionManager.command.execute("MMDiT.Compare");
    }}""")
    overlay(comfy)
    assert comfy.run(PIXELS, "with") != comfy.run(PIXELS, "without")
    comfy.page.keyboard.press("Escape")


def test_only_nodes_that_depend_on_the_block_node_are_copied(comfy):
    prompt = {
        "1": {"class_type": "L", "inputs": {}},
        "2": {"class_type": "Skip", "inputs": {"model": ["1", 0], "blocks": "1"}},
        "3": {"class_type": "Boost", "inputs": {"model": ["2", 0]}},
        "9:4": {"class_type": "S", "inputs": {"model": ["3", 0], "text": ["1", 1], "number": 3, "list": [1, 2]}},
        "5": {"class_type": "Save", "inputs": {"images": ["9:4", 0]}},
        "6": {"class_type": "Other", "inputs": {"images": ["1", 2]}},
    }
    script = """async ([path, prompt, skipped]) => {
        const { twice } = await import(path);
        return twice(prompt, new Set(skipped), [["9:4", 0], ["1", 2]]);
    }"""
    path = f"/extensions/{Path(__file__).parents[2].name}/js/panels/compare_graph.mjs"
    made = comfy.run(script, [path, prompt, ["2"]])
    assert made["pairs"] == [["with-0", "without-preview-0"]], "an image that does not depend on the node is no pair"
    new = {id: node for id, node in made["prompt"].items() if id not in prompt}
    assert new == {
        "without-9-4": {
            "class_type": "S",
            "inputs": {"model": ["without-3", 0], "text": ["1", 1], "number": 3, "list": [1, 2]},
        },
        "without-3": {"class_type": "Boost", "inputs": {"model": ["1", 0]}},
        "with-0": {"class_type": "PreviewImage", "inputs": {"images": ["9:4", 0]}},
        "without-preview-0": {"class_type": "PreviewImage", "inputs": {"images": ["without-9-4", 0]}},
    }
    assert {id: made["prompt"][id] for id in prompt} == prompt, json.dumps(made["prompt"])
    both = comfy.run(script, [path, prompt, ["2", "3"]])["prompt"]
    assert both["without-9-4"]["inputs"]["model"] == ["1", 0] and "without-3" not in both
