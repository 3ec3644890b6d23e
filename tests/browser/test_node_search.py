"""The search box finds the pack's nodes by synonyms and by category."""

from __future__ import annotations

import pytest

# Synonym -> display name of the node.
SYNONYMS = {
    "skip layer": "Block Skip",
    "emphasis": "Text Boost",
    "remove text": "Text Disable",
    "stable diffusion 3": "MMDiT Loader",
    "rectified flow": "Flow Matching Sampler",
}
CATEGORIES = {"MMDiT": ("MMDiT Loader", "Flow Matching Sampler"), "MMDiT/blocks": ("Block Skip", "Block Analysis")}


@pytest.fixture
def comfy(shared):
    shared.console_errors.clear()
    shared.page.set_default_timeout(30_000)
    yield shared
    assert shared.pack_errors() == []


def test_synonyms_and_categories_find_the_nodes(comfy, test_output):
    comfy.load({"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4})
    comfy.run("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    found = comfy.page.get_by_test_id("result-item")
    field = comfy.page.get_by_role("search").locator("input").first
    for typed, name in SYNONYMS.items():
        field.fill(typed)
        found.filter(has_text=name).first.wait_for()
    comfy.page.screenshot(path=test_output / f"search-{comfy.renderer}.png")
    field.fill("")
    for category, names in CATEGORIES.items():
        comfy.page.get_by_test_id(f"category-{category}").click()
        for name in names:
            found.filter(has_text=name).first.wait_for()
    comfy.page.keyboard.press("Escape")
    found.first.wait_for(state="detached")
