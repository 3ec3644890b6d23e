"""Notes on nodes while the user types and during runs, in both renderers."""

from __future__ import annotations

import pytest

from tests.browser.quickstart import ADD, OF, RUN_TEXT, SET, WORKFLOW, fresh

pytestmark = pytest.mark.frontend

NOTE = """(type) => {
    const node = app.graph._nodes.find((each) => each.type === type);
    const isNote = ({ name, type }) => type === "MMDIT_NOTE" && name !== "boost_rows";
    const element = node.widgets.find(isNote)?.element;
    return element?.isConnected ? element.innerText.replaceAll("\\n", " ") : null;
}"""


# The nodes with the frontend's own widget for a run's text.
PREVIEWS = """() => app.graph._nodes
    .filter((node) => node.widgets?.some((widget) => widget.name === "$$node-text-preview")).map((node) => node.type)"""
# Notes that are higher than their space.
CUT = """() => [...document.querySelectorAll(".mmdit-note")]
    .filter((each) => each.checkVisibility() && each.scrollHeight > each.clientHeight + 1)
    .map((each) => each.innerText)"""
# Words of notes that are on two lines.
BROKEN_WORDS = """() => [...document.querySelectorAll(".mmdit-note.run")].flatMap((note) => {
    const range = document.createRange();
    return [...note.firstChild.data.matchAll(/\\S+/g)].filter(({ 0: word, index }) => {
        range.setStart(note.firstChild, index);
        range.setEnd(note.firstChild, index + word.length);
        return note.checkVisibility() && range.getClientRects().length > 1;
    }).map(([word]) => word);
})"""
FEW = """() => {
    for (const node of app.graph._nodes)
        if (node.type === "FlowMatchingSampler") node.widgets.find(({ name }) => name === "steps").value = 4;
}"""
KIND = """(kind) => {
    const loader = app.graph._nodes.find((each) => each.type === "DualCLIPLoader");
    loader.widgets.find(({ name }) => name === "type").value = kind;
    app.api.dispatchCustomEvent("graphChanged", {});
}"""


@pytest.fixture
def comfy(shared):
    yield from fresh(shared, steps=4, timeout=60_000)


def until(comfy, node: str, condition: str, seconds: int = 20) -> str:
    """Wait until a condition on a node's note holds. Returns: the note."""
    script = f"(type) => {{ const note = ({NOTE})(type); return {condition}; }}"
    comfy.page.wait_for_function(script, arg=node, timeout=seconds * 1000)
    return comfy.run(NOTE, node)


def values(comfy) -> dict[int, list]:
    """The saved values of each node."""
    return {node["id"]: node.get("widgets_values") for node in comfy.graph()["nodes"]}


def test_token_counts_follow_the_typed_prompt(comfy, test_output):
    before = next(node for node in comfy.graph()["nodes"] if node["type"] == "TripleTextEncode")
    until(comfy, "TripleTextEncode", "/^prompt\\s*CLIP-L 14\\s*CLIP-G 14\\s*T5 16/.test(note)")
    field = comfy.page.locator("textarea:visible").first
    field.fill("")
    until(comfy, "TripleTextEncode", "/^prompt\\s*CLIP-L 0/.test(note)")
    field.press_sequentially("a red circle")
    until(comfy, "TripleTextEncode", "/^prompt\\s*CLIP-L 3\\s*CLIP-G 3\\s*T5 [345]\\b/.test(note)")
    comfy.run(SET, ["TripleTextEncode", {"t5_length": "77", "prompt": "a red circle and " * 40}])
    until(comfy, "TripleTextEncode", "/CLIP-L 160 in 3.*T5 76 \\+\\d+ cut/.test(note)")
    cut = comfy.page.locator(".mmdit-note .bad")
    assert cut.count() == 1 and cut.get_attribute("title").startswith("Cut: ")
    comfy.run(SET, ["TripleTextEncode", {"t5_length": "auto"}])
    until(comfy, "TripleTextEncode", "/T5 \\d{3}\\b(?! \\+)/.test(note)")
    assert comfy.page.locator(".mmdit-note .warn").count() == 1
    comfy.screenshot(test_output / f"tokens-{comfy.renderer}.png")
    after = next(node for node in comfy.graph()["nodes"] if node["type"] == "TripleTextEncode")
    assert len(after["widgets_values"]) == len(before["widgets_values"]) and after["size"] == before["size"]
    (prompt,) = [node for node in comfy.prompt().values() if node["class_type"] == "TripleTextEncode"]
    assert not {"tokens", "error"} & set(prompt["inputs"])


def test_only_tokens_of_linked_encoders_are_counted(comfy):
    comfy.load(WORKFLOW.with_name("flux1-dev.json"))
    note = until(comfy, "TripleTextEncode", "/^prompt\\s*CLIP-L \\d+\\s*T5 \\d+\\s*negative/.test(note)")
    assert "CLIP-G" not in note
    comfy.load(WORKFLOW.with_name("qwen-image.json"))
    note = until(comfy, "TripleTextEncode", "/^prompt\\s*counted during the run/.test(note)")
    assert "CLIP" not in note and "T5" not in note


def test_token_counts_follow_the_type_of_the_loader(comfy):
    comfy.load(WORKFLOW.with_name("flux1-dev.json"))
    until(comfy, "TripleTextEncode", "/^prompt\\s*CLIP-L \\d+\\s*T5 \\d+/.test(note)")
    comfy.run(KIND, "sd3")  # any two of the three encoders
    until(comfy, "TripleTextEncode", "/^prompt\\s*counted during the run/.test(note)")
    comfy.run(KIND, "flux")
    until(comfy, "TripleTextEncode", "/^prompt\\s*CLIP-L \\d+/.test(note)")


def test_a_prompt_with_a_textual_inversion_is_counted_by_the_run(comfy):
    comfy.run(SET, ["TripleTextEncode", {"prompt": "a star embedding:nowhere"}])
    until(comfy, "TripleTextEncode", "/^prompt\\s*counted during the run/.test(note)")
    comfy.queue()
    comfy.page.wait_for_function(f"() => ({RUN_TEXT})('TripleTextEncode')?.[0].startsWith('prompt: CLIP-L 2')")
    assert comfy.run(RUN_TEXT, "TripleTextEncode")[1].startswith("embedding:nowhere is left out for CLIP-L, CLIP-G, T5")


def test_speed_plan_shows_its_cost_before_and_after_a_run(comfy):
    comfy.load(WORKFLOW.with_name("speed-plan.json"))
    cost = "/^computes 46% of the predictions in 28 steps small model: -0.2 of 100 images right/.test(note)"
    until(comfy, "SpeedPlan", cost)
    comfy.run(SET, ["SpeedPlan", {"speedup": "1x (off)"}])
    until(comfy, "SpeedPlan", "/^computes everything$/.test(note)")
    comfy.run(SET, ["SpeedPlan", {"speedup": "3x"}])
    until(comfy, "SpeedPlan", "/^computes 32% of the predictions/.test(note)")
    saved = comfy.graph()
    comfy.load(saved)
    until(comfy, "SpeedPlan", "/^computes 32% of the predictions/.test(note)")
    comfy.run(FEW)
    comfy.queue()
    until(comfy, "SpeedPlan", "/^computes 32% of the predictions/.test(note)")


def test_the_sampler_shows_its_steps_and_then_the_summary(comfy):
    comfy.fit()
    comfy.run(f"""() => {{
        globalThis.texts = [];
        const record = () => texts.push(({RUN_TEXT})("FlowMatchingSampler")?.join());
        app.api.addEventListener("progress", record);
    }}""")
    comfy.queue()
    texts = comfy.run("() => texts")
    steps = [text for text in texts if text and text.startswith("step ")]
    numbers = [int(text.split()[1]) for text in steps]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 4, "the server skips events of quick steps"
    assert len(steps) > 1 and all(text.split(",")[0].endswith(" of 4") for text in steps)
    assert all(" s per step, " in text for text in steps[1:])
    (shown, *_) = comfy.wait_stable(RUN_TEXT, "FlowMatchingSampler")
    assert shown.startswith("4 model calls, "), "the summary replaces the steps"
    assert comfy.run(RUN_TEXT, "TripleTextEncode") is None, "the counts are shown once"
    assert comfy.run(PREVIEWS) == []


def test_what_a_run_did_stays_on_its_nodes_and_is_not_saved(comfy, test_output):
    comfy.run(ADD, ["BlockSkip", {"blocks": "all", "branch": "both"}])
    comfy.run(SET, ["FlowMatchingSampler", {"control_after_generate": "fixed"}])
    before, prompt = values(comfy), comfy.prompt()
    comfy.fit()
    comfy.queue()
    comfy.page.wait_for_function(f"() => ({RUN_TEXT})('BlockSkip')?.length === 2")
    shown = comfy.wait_stable(RUN_TEXT, "BlockSkip")
    assert shown == [
        "skipped 64 of 64 block calls, 100.0%",
        "all blocks were skipped: the image does not depend on the prompt",
    ]
    comfy.screenshot(test_output / f"run-text-{comfy.renderer}.png")
    assert comfy.wait_stable(RUN_TEXT, "FlowMatchingSampler")[0].startswith("4 model calls, ")
    assert comfy.run(PREVIEWS) == [], "the frontend's own widget does not repeat the text"
    assert comfy.run(CUT) == [], "the widget is as high as its text"
    assert comfy.run(BROKEN_WORDS) == [], "lines break between words alone"
    assert values(comfy) == before and comfy.prompt() == prompt


def test_the_text_of_a_run_that_stops_is_removed(comfy):
    comfy.run(SET, ["FlowMatchingSampler", {"steps": 5000}])
    comfy.fit()
    comfy.run("() => void app.queuePrompt(0, 1)")
    try:
        comfy.page.wait_for_function(f"() => ({RUN_TEXT})('FlowMatchingSampler')?.[0].includes('s per step')")
    finally:
        comfy.server.interrupt()
    comfy.page.wait_for_function(f"() => ({RUN_TEXT})('FlowMatchingSampler') === null")


RECORD_PROGRESS = "() => { globalThis.seen = 0; app.api.addEventListener('progress', () => (seen += 1)); }"


def test_a_run_of_a_client_without_an_id_shows_nothing_on_the_nodes_of_this_page(comfy):
    """ComfyUI sends the progress of such a run to every page."""
    comfy.run(SET, ["FlowMatchingSampler", {"steps": 5000}])
    comfy.run(RECORD_PROGRESS)
    comfy.server.post("/prompt", {"prompt": comfy.prompt()})
    try:
        comfy.page.wait_for_function("seen > 3")
        assert comfy.run(RUN_TEXT, "FlowMatchingSampler") is None
        assert comfy.page.locator(".mmdit-plot .mark[d^=M]").count() == 0
    finally:
        comfy.server.interrupt()


def test_the_steps_of_an_own_run_are_shown_after_the_page_is_reloaded(comfy):
    comfy.run(SET, ["FlowMatchingSampler", {"steps": 5000}])
    saved = comfy.graph()
    comfy.run(RECORD_PROGRESS)
    comfy.run("() => void app.queuePrompt(0, 1)")
    try:
        comfy.page.wait_for_function("seen > 0")
        comfy.reload()
        comfy.load(saved)
        comfy.page.wait_for_function(f"() => ({RUN_TEXT})('FlowMatchingSampler')?.[0].includes('s per step')")
    finally:
        comfy.server.interrupt()
    comfy.page.wait_for_function(f"() => ({RUN_TEXT})('FlowMatchingSampler') === null")


def test_the_text_of_a_run_is_on_a_node_in_a_subgraph(comfy):
    comfy.run(f"""() => {{
        {OF}
        globalThis.inner = app.graph.convertToSubgraph(new Set([of("FlowMatchingSampler")])).subgraph;
    }}""")
    comfy.queue()
    visible = comfy.page.locator(".mmdit-note:visible")
    assert visible.filter(has_text="4 model calls").count() == 0, "the node is not in this graph"
    comfy.run("() => app.canvas.setGraph(inner)")
    comfy.fit()
    (shown,) = comfy.wait_stable(RUN_TEXT, "FlowMatchingSampler")
    assert shown.startswith("4 model calls, ")
    comfy.run("() => app.canvas.setGraph(app.rootGraph)")


def test_an_error_is_shown_on_the_node_that_it_names(comfy, test_output):
    comfy.run(ADD, ["TextBoost", {"blocks": "1-3", "mode": "attention", "phrase": "purple elephant"}])
    comfy.run("() => void app.queuePrompt(0, 1)")
    text = until(comfy, "TextBoost", "note?.includes('purple elephant')", 60)
    assert text.startswith("phrase: "), "the note does not repeat the name of its node"
    comfy.page.keyboard.press("Escape")
    comfy.screenshot(test_output / f"error-{comfy.renderer}.png")
    comfy.run(SET, ["TextBoost", {"phrase": "red circles"}])
    comfy.queue()
    assert comfy.run(NOTE, "TextBoost") is None
    assert len(next(n for n in comfy.graph()["nodes"] if n["type"] == "TextBoost")["widgets_values"]) == 12
