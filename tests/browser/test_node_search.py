"""The search box finds the pack's nodes by synonyms and by category."""

from __future__ import annotations

import pytest

# What people type -> display names of the nodes, in an English page.
SYNONYMS = {
    "skip layer": ("Block Skip",),
    "skip layer guidance": ("Block Skip",),
    "slg": ("Block Skip",),
    "emphasis": ("Text Boost",),
    "remove text": ("Text Disable",),
    "stable diffusion 3": ("MMDiT Loader",),
    "rectified flow": ("Flow Matching Sampler",),
    "block weight": ("Text Boost",),
    "flux": ("Block Skip", "Text Boost", "Flow Matching Sampler"),
    "attention": ("Text Boost",),
    "teacache": ("Speed Plan",),
    "rf edit": ("Flow Invert", "Flow Edit", "Source Pull"),
    "mmdit": ("MMDiT Loader", "Block Skip", "Flow Edit"),
    "跳过": ("Block Skip",),
    "块": ("Block Skip", "Text Boost", "Block Analysis"),
    "增强": ("Text Boost",),
    "屏蔽": ("Text Disable",),
    "提示词": ("Triple Text Encode", "Block Prompt"),
    "采样": ("Flow Matching Sampler",),
    "编辑": ("Flow Edit", "Flow Invert"),
    "反演": ("Flow Invert", "Source Pull"),
    "加速": ("Speed Plan",),
    "分析": ("Block Analysis",),
    "加载": ("MMDiT Loader",),
    "显存": ("Precompute Modulation",),
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
    for typed, names in SYNONYMS.items():
        field.fill(typed)
        for name in names:
            found.filter(has_text=name).first.wait_for()
    comfy.page.screenshot(path=test_output / f"search-{comfy.renderer}.png")
    field.fill("")
    for category, names in CATEGORIES.items():
        comfy.page.get_by_test_id(f"category-{category}").click()
        for name in names:
            found.filter(has_text=name).first.wait_for()
    comfy.page.keyboard.press("Escape")
    found.first.wait_for(state="detached")
