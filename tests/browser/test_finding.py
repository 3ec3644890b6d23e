"""How a person finds the pack's nodes: by other words in the search box, and by their place among the categories."""

from __future__ import annotations

import pytest

# What somebody might type -> the node that it means, whose name and display name say something else.
MEANT = {
    "skip layer": "Block Skip",
    "emphasis": "Text Boost",
    "remove text": "Text Disable",
    "stable diffusion 3": "MMDiT Loader",
    "rectified flow": "Flow Matching Sampler",
}
PLACES = {"MMDiT": ("MMDiT Loader", "Flow Matching Sampler"), "MMDiT/blocks": ("Block Skip", "Block Analysis")}


@pytest.fixture
def comfy(shared):
    shared.complaints.clear()
    shared.page.set_default_timeout(30_000)
    yield shared
    assert shared.pack_complaints() == []


def test_other_words_and_the_categories_lead_to_a_node(comfy, test_output):
    comfy.load({"last_node_id": 0, "last_link_id": 0, "nodes": [], "links": [], "version": 0.4})
    comfy.run("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    found = comfy.page.get_by_test_id("result-item")
    field = comfy.page.get_by_role("search").locator("input").first
    for typed, name in MEANT.items():
        field.fill(typed)
        found.filter(has_text=name).first.wait_for()
    comfy.page.screenshot(path=test_output / f"search-{comfy.renderer}.png")
    field.fill("")
    for place, names in PLACES.items():
        comfy.page.get_by_test_id(f"category-{place}").click()
        for name in names:
            found.filter(has_text=name).first.wait_for()
    comfy.page.keyboard.press("Escape")
    found.first.wait_for(state="detached")
