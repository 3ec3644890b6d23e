"""Notes on nodes while the user types and during runs, in both renderers."""

from __future__ import annotations

import pytest

from tests.browser.quickstart import ADD, SET, WORKFLOW, fresh

NOTE = """(type) => {
    const node = app.graph._nodes.find((each) => each.type === type);
    const element = node.widgets.find((widget) => widget.type === "MMDIT_NOTE")?.element;
    return element?.isConnected ? element.innerText.replaceAll("\\n", " ") : null;
}"""


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
    yield from fresh(shared, steps=4, timeout=15_000)


def until(comfy, node: str, condition: str, seconds: int = 20) -> str:
    """Wait until a condition on a node's note holds. Returns: the note."""
    script = f"(type) => {{ const note = ({NOTE})(type); return {condition}; }}"
    comfy.page.wait_for_function(script, arg=node, timeout=seconds * 1000)
    return comfy.run(NOTE, node)


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
    comfy.run("""() => {
        globalThis.texts = [];
        app.api.addEventListener("progress_text", (event) => texts.push(event.detail.text));
    }""")
    comfy.queue()
    texts = comfy.run("() => texts")
    steps = [text for text in texts if text.startswith("step ")]
    numbers = [int(text.split()[1]) for text in steps]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 4, "the server skips events of quick steps"
    assert len(steps) > 1 and all(text.split(",")[0].endswith(" of 4") for text in steps)
    assert all(" s per step, " in text for text in steps[1:])
    shown = comfy.run("""() => app.graph._nodes.find((node) => node.type === "FlowMatchingSampler")
        .widgets.find((widget) => widget.name === "$$node-text-preview")?.value""")
    assert shown and not shown.startswith("step "), "the summary replaces the steps"
    encode = """() => app.graph._nodes.find((node) => node.type === "TripleTextEncode").widgets.map((w) => w.name)"""
    assert "$$node-text-preview" not in comfy.run(encode), "the counts are shown once"


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
    assert len(next(n for n in comfy.graph()["nodes"] if n["type"] == "TextBoost")["widgets_values"]) == 10
