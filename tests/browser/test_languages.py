"""The pack in Chinese, as a person meets it: names on the nodes, the help page, and English again."""

from __future__ import annotations

import json

from scripts.environment import ROOT

NODE = "FlowMatchingSampler"
SHOWN = """(type) => {
    const node = app.graph._nodes.find((node) => node.type === type);
    return {
        title: node.title,
        inputs: Object.fromEntries(node.inputs.map((input) => [input.name, input.label || input.localized_name])),
        widgets: Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.label || widget.name])),
    };
}"""


def words(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))[NODE]


def speak(comfy, language: str) -> None:
    """Set the language as the settings panel does, and open the workflow in it."""
    comfy.run("async (language) => await app.extensionManager.setting.set('Comfy.Locale', language)", language)
    comfy.page.reload()
    comfy.page.wait_for_function(
        "window.app?.extensionManager && app.isGraphReady && !document.querySelector('#splash-loader')",
        timeout=180_000,
    )
    comfy.load(ROOT / "workflows" / "quickstart.json")


def test_a_node_and_its_help_speak_the_language_of_the_settings(comfy):
    sent = {}
    for language in ("zh", "en"):
        speak(comfy, language)
        expected, shown = words(language), comfy.run(SHOWN, NODE)
        assert shown["title"] == expected["display_name"]
        for name, text in expected["inputs"].items():
            assert shown["inputs"][name] == text["name"]
            assert shown["widgets"].get(name, text["name"]) == text["name"]
        sent[language] = comfy.prompt()
        if language == "zh":
            look_at_help(comfy)
    without_titles = [
        {number: (node["class_type"], node["inputs"]) for number, node in prompt.items()} for prompt in sent.values()
    ]
    assert without_titles[0] == without_titles[1]  # a language changes what is seen, never what is run
    assert comfy.pack_complaints() == []


def look_at_help(comfy) -> None:
    comfy.run("(type) => app.canvas.selectNode(app.graph._nodes.find((node) => node.type === type))", NODE)
    comfy.page.locator("[data-testid=info-button]").first.click()
    page = comfy.page.locator(".node-help-content")
    first = (ROOT / "web" / "docs" / NODE / "zh.md").read_text(encoding="utf-8").splitlines()[2]
    page.get_by_text(first, exact=True).wait_for()
    picture = page.locator("img").first
    assert picture.get_attribute("src") == f"/extensions/{ROOT.name}/docs/{NODE}.png"
    width = picture.evaluate("async (image) => { await image.decode(); return image.naturalWidth; }")
    assert width > 300
