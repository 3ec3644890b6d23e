"""Every help page, and the README, has its Chinese page: as many parts, the same picture, the words of the locale."""

from __future__ import annotations

import json
import re

import pytest

from scripts.environment import ROOT

DOCS = ROOT / "web" / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# Of a page in English and its translation, these are the same, in the same order.
SAME = {
    "headings": re.compile(r"^(#+) ", re.M),
    "pictures": re.compile(r"!\[[^\]]+\]\(([^)]+)\)"),
    "code": re.compile(r"^```.*?^```", re.M | re.S),
    "table rows": re.compile(r"^\|", re.M),
    "list items": re.compile(r"^ *- ", re.M),
}
FIGURES = re.compile(r"`[^`\n]+`|\d+(?:\.\d+)*", re.ASCII)  # and what is to be typed
BOLD = re.compile(r"\*\*(.+?)\*\*")
DIAL = re.compile(r"\*\*([^*]+)\*\*（([a-z][a-z0-9_]*)[，）]")


def english(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def chinese(name: str) -> str:
    return (DOCS / name / "zh.md").read_text(encoding="utf-8")


def held_together(page: str, translation: str) -> None:
    for what, pattern in SAME.items():
        assert pattern.findall(page) == pattern.findall(translation), what
    assert set(FIGURES.findall(page)) == set(FIGURES.findall(translation))
    headings = [line for line in translation.splitlines() if line.startswith("## ")]
    assert all(CHINESE.search(line) for line in headings)


@pytest.mark.parametrize("name", PAGES)
def test_a_chinese_page_has_the_parts_and_the_picture_of_its_page(name):
    held_together(english(name), chinese(name))


def test_the_readme_has_its_chinese_page_and_each_leads_to_the_other():
    page, translation = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md"))
    held_together(page, translation)
    assert "(README.zh.md)" in page[:200] and "(README.md)" in translation[:200]
    links = re.compile(r"\]\(([^)]+)\)")
    assert set(links.findall(page)) - {"README.zh.md"} == set(links.findall(translation)) - {"README.md"}


def test_there_is_a_chinese_page_for_every_node_and_no_other(pack):
    assert {path.parent.name for path in DOCS.glob("*/zh.md")} == set(PAGES) == set(pack.NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("name", PAGES)
def test_a_chinese_page_calls_every_dial_as_the_node_does(name):
    """A dial stands as **名称**（name）, so that readers find it whichever language their ComfyUI speaks."""
    node = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))[name]
    names = {given: words["name"].split("（")[0] for given, words in node["inputs"].items()}
    results = {words["name"] for words in node["outputs"].values()}
    page = chinese(name)
    dials = {given: shown for shown, given in DIAL.findall(page)}
    # What the English page prints in bold and is an input, the Chinese page names too.
    inputs = {word for word in BOLD.findall(english(name)) if word in names}
    assert inputs <= set(dials)
    assert all(names.get(given, shown) == shown for given, shown in dials.items())
    assert all(shown in results for given, shown in dials.items() if given not in names)


@pytest.mark.parametrize("name", PAGES)
def test_bold_words_are_bold_between_chinese_letters(name):
    """Markdown leaves the stars in sight where a sign stands inside them and a letter follows without a space."""
    for found in BOLD.finditer(chinese(name)):
        assert re.match(r"\w", found[1][0]) and re.match(r"\w", found[1][-1]), found[0]


def test_the_live_host_serves_the_pages_and_their_pictures(comfyui):
    for name in PAGES:
        folder = f"/extensions/{ROOT.name}/docs"
        assert comfyui.fetch(f"{folder}/{name}/zh.md").decode() == chinese(name)
        # ComfyUI's page joins a picture's relative address to docs/, not to the page's own folder.
        for picture in SAME["pictures"].findall(chinese(name)):
            assert comfyui.fetch(f"{folder}/{picture}").startswith(b"\x89PNG")
