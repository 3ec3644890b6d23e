"""Help pages and the README have a Chinese page with the same parts, images and figures, and the locales' names."""

from __future__ import annotations

import json
import re

import pytest

from scripts.environment import ROOT

DOCS = ROOT / "web" / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# A page and its translation have these in common, in the same order.
SAME = {
    "headings": re.compile(r"^(#+) ", re.M),
    "images": re.compile(r"!\[[^\]]+\]\(([^)]+)\)"),
    "code": re.compile(r"^```.*?^```", re.M | re.S),
    "table rows": re.compile(r"^\|", re.M),
    "list items": re.compile(r"^ *- ", re.M),
}
FIGURES = re.compile(r"`[^`\n]+`|\d+(?:\.\d+)*", re.ASCII)  # and text to be typed
BOLD = re.compile(r"\*\*(.+?)\*\*")
INPUT = re.compile(r"\*\*([^*]+)\*\*（([a-z][a-z0-9_]*)[，）]")


def english(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def chinese(name: str) -> str:
    return (DOCS / name / "zh.md").read_text(encoding="utf-8")


def assert_same_parts(page: str, translation: str) -> None:
    for what, pattern in SAME.items():
        assert pattern.findall(page) == pattern.findall(translation), what
    assert set(FIGURES.findall(page)) == set(FIGURES.findall(translation))
    headings = [line for line in translation.splitlines() if line.startswith("## ")]
    assert all(CHINESE.search(line) for line in headings)


@pytest.mark.parametrize("name", PAGES)
def test_a_chinese_page_has_the_parts_and_the_image_of_its_page(name):
    assert_same_parts(english(name), chinese(name))


def test_the_readme_has_a_chinese_page_and_each_links_to_the_other():
    page, translation = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    assert_same_parts(page, translation)
    assert "(README.zh.md)" in page[:200] and "(README.md)" in translation[:200]
    links = re.compile(r"\]\(([^)]+)\)")
    assert set(links.findall(page)) - {"README.zh.md"} == set(links.findall(translation)) - {"README.md"}


def test_there_is_a_chinese_page_for_every_node_and_no_other(pack):
    assert {path.parent.name for path in DOCS.glob("*/zh.md")} == set(PAGES) == set(pack.NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("name", PAGES)
def test_a_chinese_page_names_every_input_as_the_node_does(name):
    """An input is written as **名称**（name）, so that readers find it in either language."""
    node = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))[name]
    names = {given: words["name"].split("（")[0] for given, words in node["inputs"].items()}
    results = {words["name"] for words in node["outputs"].values()}
    page = chinese(name)
    shown_names = {given: shown for shown, given in INPUT.findall(page)}
    # Every input in bold on the English page is on the Chinese page too.
    inputs = {word for word in BOLD.findall(english(name)) if word in names}
    assert inputs <= set(shown_names)
    assert all(names.get(given, shown) == shown for given, shown in shown_names.items())
    assert all(shown in results for given, shown in shown_names.items() if given not in names)


@pytest.mark.parametrize("name", PAGES)
def test_bold_text_renders_between_chinese_characters(name):
    """Markdown does not render bold text that begins or ends with punctuation next to a letter."""
    for found in BOLD.finditer(chinese(name)):
        assert re.match(r"\w", found[1][0]) and re.match(r"\w", found[1][-1]), found[0]


def test_the_server_serves_the_pages_and_their_images(comfyui):
    for name in PAGES:
        folder = f"/extensions/{ROOT.name}/docs"
        assert comfyui.fetch(f"{folder}/{name}/zh.md").decode() == chinese(name)
        # ComfyUI resolves relative image addresses against docs/, not the page's folder.
        for image in SAME["images"].findall(chinese(name)):
            assert comfyui.fetch(f"{folder}/{image}").startswith((b"\x89PNG", b"\xff\xd8\xff")), image
