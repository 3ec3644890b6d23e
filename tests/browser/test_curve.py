"""The sigma curve of FlowMatchingSampler while its inputs change, in both renderers."""

from __future__ import annotations

import pytest

from tests.browser.quickstart import ADD, SET, fresh

FILE = "mmdit-small.safetensors"

FIND = """() => {
    const node = app.graph._nodes.find((each) => each.type === "FlowMatchingSampler");
    const element = node.widgets.find((widget) => widget.name === "curve")?.element;
    const figure = element?.querySelector(".mmdit-figure");
    const bands = [...element?.querySelectorAll(".mmdit-band") ?? []];
    return {
        shown: Boolean(element?.isConnected),
        text: element?.innerText ?? "",
        label: figure?.ariaLabel ?? "",
        run: figure?.querySelector(".run").getAttribute("d") ?? "",
        rest: figure?.querySelector(".rest").getAttribute("d") ?? "",
        bands: bands.map((band) => [band.innerText, band.querySelector("path").getAttribute("d")]),
        at: figure && (({ left, top, width, height }) => [left, top, width, height])(figure.getBoundingClientRect()),
        height: element?.offsetHeight,
    };
}"""


@pytest.fixture
def comfy(shared):
    yield from fresh(shared, steps=4, timeout=15_000)


def until(comfy, condition: str):
    """Wait until a condition on the curve `c` holds. Returns: its state."""
    comfy.page.wait_for_function(f"() => {{ const c = ({FIND})(); return {condition}; }}", timeout=20_000)
    return comfy.run(FIND)


def enlarged(comfy, path) -> None:
    """A screenshot of the curve, enlarged."""
    comfy.run("""() => {
        const node = app.graph._nodes.find((each) => each.type === "FlowMatchingSampler");
        app.canvas.ds.scale = 1.5;
        app.canvas.ds.offset = [200 - node.pos[0], 540 - node.pos[1] - node.size[1]];
    }""")
    comfy.wait_stable(f"() => ({FIND})().at")
    comfy.page.screenshot(path=path)


def sigmas(path: str) -> list[float]:
    return [1 - float(point.split(",")[1]) for point in path.removeprefix("M").split("L")]


def sampler(comfy):
    return next(node for node in comfy.graph()["nodes"] if node["type"] == "FlowMatchingSampler")


def test_the_curve_follows_the_inputs_and_equals_the_sigmas_that_run(comfy, test_output):
    before = sampler(comfy)
    curve = until(comfy, "/^Sigmas: 4 steps, shift/.test(c.label)")
    assert curve["shown"] and len(sigmas(curve["run"])) == 5 and curve["bands"][0][0] == "cfg 4.5"
    comfy.run(SET, ["FlowMatchingSampler", {"schedule": "karras", "shift": 5, "cfg_end": 0.5, "end_step": 3}])
    curve = until(comfy, "c.text.includes('shift 5') && c.text.includes('runs 0 to 3 of 4')")
    drawn = sigmas(curve["run"])
    assert len(drawn) == 4 and len(sigmas(curve["rest"])) == 5, "steps that do not run are a separate line"
    record = comfy.queue()
    (extra,) = [value for key, value in pnginfo(comfy, record).items() if key == "mmdit_sampler"]
    (facts,) = extra.values()
    assert drawn == pytest.approx(facts["sigmas"], abs=1e-4)
    comfy.screenshot(test_output / f"curve-{comfy.renderer}.png")
    after = sampler(comfy)
    assert len(after["widgets_values"]) == len(before["widgets_values"]), "the curve is not saved"
    assert not {"curve"} & set(next(n for n in comfy.prompt().values() if n["class_type"] == after["type"])["inputs"])


def pnginfo(comfy, record):
    """The metadata of the image that a run saved."""
    import io
    import json

    from PIL import Image

    (image,) = comfy.server.images(record)
    return {key: json.loads(text) for key, text in Image.open(io.BytesIO(image)).text.items()}


def test_the_curve_follows_a_typed_value(comfy):
    until(comfy, "/^Sigmas: 4 steps/.test(c.label)")
    comfy.fit()
    if comfy.renderer == "nodes2":
        box = comfy.page.locator("[data-node-id] input[aria-valuemax='10000']").first.bounding_box()
        comfy.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        comfy.page.keyboard.press("Control+A")
        comfy.page.keyboard.type("9")
        comfy.page.keyboard.press("Enter")
    else:
        place = comfy.run("""() => {
            const node = app.graph._nodes.find((each) => each.type === "FlowMatchingSampler");
            const widget = node.widgets.find((each) => each.name === "steps");
            const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10];
            const { left, top } = app.canvas.canvas.getBoundingClientRect();
            return [left + (x + app.canvas.ds.offset[0]) * app.canvas.ds.scale,
                    top + (y + app.canvas.ds.offset[1]) * app.canvas.ds.scale];
        }""")
        comfy.page.mouse.dblclick(*place)
        field = comfy.page.locator(".graphdialog input")
        field.fill("9")
        field.press("Enter")
    curve = until(comfy, "/^Sigmas: 9 steps/.test(c.label)")
    assert len(sigmas(curve["run"])) == 10


def test_block_nodes_upstream_have_bands(comfy, test_output):
    comfy.run(ADD, ["BlockSkip", {"blocks": "2-4", "start_percent": 0.25}])
    comfy.run(ADD, ["TextBoost", {"blocks": "0-5", "end_percent": 0.5, "fade": "out"}])
    comfy.run(ADD, ["TextDisable", {"blocks": ""}])
    comfy.run(SET, ["FlowMatchingSampler", {"steps": 12}])
    curve = until(comfy, "c.bands.length === 3 && c.run.split('L').length === 13")
    assert [name for name, _ in curve["bands"]] == ["cfg 4.5", "skip 2-4", "boost 0-5"], "in order from the loader"
    full, skip, boost = (path.count("M") for _, path in curve["bands"])
    assert full == 12 and 0 < skip < 12 and 0 < boost < 12
    assert "skip 2-4 in steps" in curve["label"] and "cfg 4.5 in steps 0 to 11" in curve["label"]
    enlarged(comfy, test_output / f"curve-controls-{comfy.renderer}.png")
    height = curve["height"]
    comfy.run(SET, ["BlockSkip", {"start_percent": 0.9}])  # an input of another node
    curve = until(comfy, f"c.bands[1][1].split('M').length - 1 < {skip}")
    comfy.run("() => (app.graph._nodes.find((n) => n.type === 'BlockSkip').mode = 4)")  # bypassed
    curve = until(comfy, "c.bands.length === 2")
    assert curve["height"] < height, "the node gets lower again"


def test_a_control_that_is_bypassed_or_muted_by_key_loses_its_band_and_gets_it_back(comfy):
    comfy.run(ADD, ["BlockSkip", {"blocks": "2-4"}])
    comfy.run(SET, ["FlowMatchingSampler", {"shift": 3}])  # known without the model, too
    until(comfy, "c.bands.length === 2")
    select = "app.canvas.selectNode(app.graph._nodes.find((n) => n.type === 'BlockSkip'))"
    mode = "() => app.graph._nodes.find((n) => n.type === 'BlockSkip').mode"
    for key, inactive in (("Control+b", 4), ("Control+m", 2)):
        for bands, expected in ((1, inactive), (2, 0)):
            comfy.run(f"() => {{ {select}; app.canvas.canvas.focus(); }}")
            comfy.page.keyboard.press(key)
            assert comfy.run(mode) == expected
            until(comfy, f"c.bands.length === {bands}")


def test_a_text_that_cannot_be_read_has_no_band(comfy):
    comfy.run(ADD, ["BlockSkip", {"blocks": "2-4"}])
    until(comfy, "c.bands.length === 2")
    for text, bands in (("frog", 1), ("2、4", 2), ("2-40", 1), ("none", 1), ("3:2", 1), ("all", 2)):
        comfy.run(SET, ["BlockSkip", {"blocks": text}])
        comfy.run("() => app.api.dispatchCustomEvent('graphChanged', {})")
        until(comfy, f"c.bands.length === {bands}")


def test_the_pointer_shows_a_sigma(comfy):
    comfy.fit()
    left, top, width, height = comfy.wait_stable(f"() => ({FIND})().at")
    comfy.page.mouse.move(left + width / 2, top + height / 2, steps=3)
    curve = until(comfy, "c.text.includes('step 2: sigma ')")
    assert f"sigma {round(sigmas(curve['run'])[2], 4):g}" in curve["text"]
    comfy.page.mouse.move(5, 400)
    until(comfy, "c.text.includes('4 steps, shift')")


def test_unknown_and_invalid_inputs_are_named(comfy):
    until(comfy, "c.run")
    comfy.run("""() => {
        const node = app.graph._nodes.find((each) => each.type === "FlowMatchingSampler");
        node.disconnectInput(0);
    }""")
    until(comfy, "!c.run && c.text.includes('model is unknown')")
    comfy.run(SET, ["FlowMatchingSampler", {"shift": 3}])
    until(comfy, "c.text.includes('4 steps, shift 3')")
    comfy.run(SET, ["FlowMatchingSampler", {"size_shift": "sd3"}])
    until(comfy, "/shift 1\\.\\d+|shift 0\\.\\d+/.test(c.text)")
    comfy.run(SET, ["FlowMatchingSampler", {"size_shift": "off", "custom_sigmas": "1, 0.5, 0.6"}])
    until(comfy, "!c.run && c.text.includes('sigma 1 is 0.5 and sigma 2 is 0.6')")
    comfy.run(SET, ["FlowMatchingSampler", {"custom_sigmas": "1, 0.5, 0"}])
    assert sigmas(until(comfy, "c.run")["run"]) == [1, 0.5, 0]
    comfy.run("""() => {
        const sigmas = LiteGraph.createNode("BasicScheduler");
        app.graph.add(sigmas);
        const node = app.graph._nodes.find((each) => each.type === "FlowMatchingSampler");
        sigmas.connect(0, node, node.inputs.findIndex((slot) => slot.name === "sigmas"));
    }""")
    until(comfy, "!c.run && c.text.includes('sigmas is linked')")


def test_without_an_answer_of_the_server_there_is_no_curve(comfy):
    until(comfy, "c.shown")
    height = sampler(comfy)["size"][1]
    comfy.page.route("**/mmdit/curve", lambda route: route.fulfill(status=404))
    try:
        comfy.run(SET, ["FlowMatchingSampler", {"steps": 7}])
        until(comfy, "!c.shown")
        assert sampler(comfy)["size"][1] <= height
    finally:
        comfy.page.unroute("**/mmdit/curve")
    comfy.console_errors[:] = [text for text in comfy.console_errors if "/mmdit/curve" not in text]
    comfy.run(SET, ["FlowMatchingSampler", {"steps": 8}])
    until(comfy, "c.shown && c.run.split('L').length === 9")
