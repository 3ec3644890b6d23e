"""The web modules: the same grammar as the server's, quick to load, and optional."""

from __future__ import annotations

import random
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from mmdit_core.control.grammar import BlockTextError, parse_block_strengths, parse_blocks
from mmdit_core.control.grammar import plain as plain_text
from tests.core.control.keyboards import KEYBOARDS, REFUSED

PACK = Path(__file__).parents[2].name
MODELS = ((24, 0), (19, 38), (38, 0), (60, 0), (8, 0), (5, 3), (1, 0))
SPELLED = (
    "", " , ;\n", "0-5, 9, 12-", "3;1\n2", "5, 5, 4-6", "last", "first", "first 25%", "last 12.5 %", "middle 50%",
    "all", "none", "EVEN", "odd", "early", "middle", "late", "!3", "!0-21", "0-5, !3, 3", "0 - 2", "d3, s7", "d17-",
    "s36-", "d17-s1", "s0-2", "19", "single, !s1-", "double", "40", "3-40", "2, frog", "5-3", "-3", "1.5", "s38", "s1",
    "first 101%", "3:2", "!", "!40", "3:1.5, 7-9:2, 1", "3:x", "3:-1", "3:inf", "3:", "first 12.5%", "middle 33.3%",
    "3 :2", "!3:2", "7-9:0", "3:1e1", "3:1_0", "3:.5", "3:5.", "3: 1.5 ", "99999999999999999999", "007", "٣", "３-５",
    "9" * 18, "0-" + "9" * 5000, "٣" * 20, "d" + "9" * 19,
    "constructor", "it's", 'say "x"', "\ufeff3", "3\u3000", "first\u00a025%", "0-5\t", "late:2, 23:3",
    *KEYBOARDS, *REFUSED,
)  # fmt: skip
PIECES = (
    "0", "3", "7", "23", "24", "40", "-", " - ", "–", ":", ":1.5", ":2", ":x", ":1e3", "!", "! ", "all", "even", "last",
    "early", "late", "double", "single", "d3", "s7", "D2", "first 25%", "middle 50%", "first 101%", " ", ",", ",", ";",
    "\n", "٣", "\u3000", "frog", "'", '"', "%", "0-5", "12-", "5-3", "d1-s1", "s0-2", "、", "，", "；", "～",
    "——", "：2", "！", "３", "％", "\t", "\x1f", "ー",
)  # fmt: skip


def texts() -> list[str]:
    """Texts that people write, and 4,000 random ones."""
    draw = random.Random(0)
    return [*SPELLED, *("".join(draw.choices(PIECES, k=draw.randint(1, 6))) for _ in range(4000))]


def cases() -> list[tuple[str, int, int, bool]]:
    found = [(text, *MODELS[i % len(MODELS)], i // 7 % 2 == 0) for i, text in enumerate(texts())]
    return found + [(text, *model, strengths) for text in SPELLED for model in MODELS for strengths in (True, False)]


def in_python(text: str, double: int, single: int, strengths: bool):
    """[[block, strength or None], ...], or the error's text."""
    try:
        if not strengths:
            return [[block, None] for block in parse_blocks(text, double, single)]
        return [list(pair) for pair in parse_block_strengths(text, double, single, 1.25).items()]
    except BlockTextError as error:
        return str(error)


@pytest.fixture
def plain(chromium, comfyui):
    """A page without ComfyUI's frontend, to import single modules."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"{comfyui.url}/system_stats")
    yield page
    context.close()


READ = """async ([path, cases]) => {
    const { plain, read, write, Blocks } = await import(path);
    return cases.map(([text, double, single, strengths]) => {
        const blocks = new Blocks(double, single);
        const { chosen, errors } = read(text, blocks, { strengths });
        const again = read(write(chosen, blocks), blocks, { strengths });
        return {
            plain: plain(text),
            found: errors.length ? errors[0].message : [...chosen],
            kept: JSON.stringify([...chosen]) === JSON.stringify([...again.chosen]) && !again.errors.length,
        };
    });
}"""


def test_the_browser_parses_every_text_as_the_server_does(plain):
    given = cases()
    parsed = plain.evaluate(READ, [f"/extensions/{PACK}/js/widgets/grammar.mjs", given])
    expected = [in_python(*case) for case in given]
    for case, page, server in zip(given, parsed, expected, strict=True):
        found = page["found"]
        if isinstance(found, list) and case[3]:
            found = [[block, 1.25 if own is None else own] for block, own in found]
        assert found == server, case
        assert page["plain"] == plain_text(case[0]), case
        assert page["kept"], f"{case}: written and parsed again, the blocks differ"
    readable = sum(isinstance(found, list) for found in expected)
    assert 300 < readable < len(expected) - 300, "the texts must contain many of both kinds"


LOADED = """(pack) => performance.getEntriesByType("resource")
    .filter((each) => each.name.includes(`/extensions/${pack}/`))
    .map((each) => [each.name.split("/").at(-1), each.startTime, each.responseEnd, each.decodedBodySize])"""
# Imports a module several times with a stub of ComfyUI's frontend, and measures the time.
ALONE = """async ([path, tries]) => {
    const app = { registerExtension() {} };
    globalThis.comfyAPI = { app: { app, ANIM_PREVIEW_WIDGET: "" }, api: { api: new EventTarget() } };
    await Promise.all([import("/scripts/app.js"), import("/scripts/api.js")]);
    const times = [];
    for (let i = 0; i < tries; i += 1) {
        const start = performance.now();
        await import(`${path}?${i}`); // another address: fetched and run again
        times.push(performance.now() - start);
    }
    return times;
}"""
MAX_MS = 50


def test_one_script_loads_at_startup_and_the_rest_with_the_first_node(comfy, plain):
    comfy.run("() => performance.setResourceTimingBufferSize(5000)")  # ComfyUI's own files fill the default buffer
    assert [name for name, *_ in comfy.run(LOADED, PACK)] == ["mmdit.js"]
    comfy.load({"last_node_id": 1, "nodes": [{"id": 1, "type": "EmptyImage", "pos": [0, 0]}], "links": []})
    assert len(comfy.run(LOADED, PACK)) == 1, "other packs' nodes load nothing"
    (entry,) = comfy.run(LOADED, PACK)
    comfy.load({"last_node_id": 1, "nodes": [{"id": 1, "type": "MMDiTLoader", "pos": [0, 0]}], "links": []})
    rest = comfy.run(LOADED, PACK)[1:]
    assert {"all_nodes.mjs", "note.css"} <= {name for name, *_ in rest}
    assert not {"block_widget.mjs", "tokens.mjs", "curve.mjs"} & {name for name, *_ in rest}, "not for a loader"
    comfy.load({"last_node_id": 1, "nodes": [{"id": 1, "type": "BlockSkip", "pos": [0, 0]}], "links": []})
    rest = comfy.run(LOADED, PACK)[1:]
    assert {"block_widget.mjs", "grammar.mjs", "strip.css"} <= {name for name, *_ in rest}
    # The minimum of several: other processes only make it slower.
    quickest = min(plain.evaluate(ALONE, [f"/extensions/{PACK}/js/mmdit.js", 8]))
    span = max(end for _, _, end, _ in rest) - min(start for _, start, _, _ in rest)
    print(
        f"\n{comfy.renderer}: {entry[3]} bytes at once, {quickest:.0f} ms alone, {entry[2] - entry[1]:.0f} in the page;"
        f" then {sum(size for *_, size in rest)} bytes in {len(rest)} files, {span:.0f} ms"
    )
    assert quickest < MAX_MS
    comfy.load(Path(__file__).parents[2] / "workflows" / "quickstart.json")
    whole = comfy.run(LOADED, PACK)
    assert {"tokens.mjs", "curve.mjs", "curve.css"} <= {name for name, *_ in whole}
    print(f"{comfy.renderer}: strips, counts and the curve together {sum(size for *_, size in whole[1:])} bytes")


def test_the_browser_revalidates_every_module(comfyui):
    """After an update old and new modules must not be mixed."""
    for name, kept in (("mmdit.js", "no-store"), ("all_nodes.mjs", "no-cache")):
        with urllib.request.urlopen(f"{comfyui.url}/extensions/{PACK}/js/{name}") as answer:
            assert answer.headers["Cache-Control"] == kept
            assert answer.headers.get_content_type() in ("text/javascript", "application/javascript")


def test_the_first_strip_is_a_text_field_until_its_module_is_loaded(comfy):
    """A new node while the strip's module is still loading."""
    routes: list[Any] = []
    comfy.page.route("**/js/widgets/block_widget.mjs", lambda route: routes.append(route))
    comfy.load({"last_node_id": 0, "nodes": [], "links": []})
    comfy.run("""() => {
        const node = LiteGraph.createNode("BlockSkip"); // Text Boost gets its rows after this, too
        node.pos = [100, 100];
        app.graph.add(node);
    }""")
    field = comfy.page.get_by_role("textbox", name="blocks")
    field.fill("2, 5")
    assert comfy.graph()["nodes"][0]["widgets_values"][0] == "2, 5"
    comfy.wait_stable()  # Nodes 2.0 measures the rows of a new node after drawing them
    size = comfy.graph()["nodes"][0]["size"]
    while not routes:
        comfy.page.wait_for_timeout(20)
    routes[0].continue_()
    comfy.page.wait_for_selector(".mmdit-cell")
    assert comfy.page.locator('.mmdit-cell[aria-selected="true"]').count() == 2
    assert comfy.graph()["nodes"][0]["widgets_values"][0] == "2, 5" and comfy.graph()["nodes"][0]["size"] == size
    assert comfy.pack_errors() == []


def test_without_the_strips_module_the_text_field_stays(comfy):
    comfy.page.route("**/js/widgets/block_widget.mjs", lambda route: route.abort())
    comfy.load({"last_node_id": 1, "nodes": [
        {"id": 1, "type": "BlockSkip", "pos": [100, 100], "widgets_values": ["0-5", "negative", 0, 1]}
    ], "links": [], "version": 0.4})  # fmt: skip
    field = comfy.page.get_by_role("textbox", name="blocks")
    assert field.input_value() == "0-5"
    field.fill("7")
    assert comfy.graph()["nodes"][0]["widgets_values"][0] == "7"
    assert any("MMDiT: a script did not load" in text for text in comfy.console_errors)


@pytest.mark.frontend
def test_without_any_script_the_blocks_are_a_text_field(without_scripts):
    comfy = without_scripts
    node = {"id": 1, "type": "TextBoost", "pos": [100, 100], "widgets_values": ["2:1.5, 7", 2.0]}
    comfy.load({"last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4})
    field = comfy.page.locator("[data-node-id]").get_by_role("textbox").first
    assert field.input_value() == "2:1.5, 7"
    field.fill("3")
    comfy.page.wait_for_function("app.graph._nodes[0].widgets[0].value === '3'")
    assert comfy.prompt()["1"]["inputs"]["blocks"] == "3"
    assert comfy.graph()["nodes"][0]["widgets_values"][:3] == ["3", 2.0, "residual"]
