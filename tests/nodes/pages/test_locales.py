"""Both languages say everything that the nodes' definitions say, and reach the browser."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.environment import ROOT
from scripts.make_locales import categories, definitions, of_pack

LANGUAGES = ("en", "zh")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NAMES = {"CLIP", "VAE"}  # these are called so in Chinese too
FORMAT = re.compile(r"[{}@|]")  # the browser would read these as placeholders, links and plurals, not as text


def words(language: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))


def strings(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a file with the keys that lead there."""
    if not isinstance(tree, dict):
        yield place, tree
        return
    for key, value in tree.items():
        yield from strings(value, f"{place}/{key}")


@pytest.fixture(scope="module")
def info(comfyui, pack) -> dict[str, Any]:
    """The pack's nodes as the live host describes them."""
    found = of_pack(comfyui.object_info())
    assert set(found) == set(pack.NODE_CLASS_MAPPINGS)
    return found


def test_the_english_words_are_the_definitions(info):
    assert words("en", "nodeDefs.json") == definitions(info), "run `python -m scripts.make_locales`"


def test_the_chinese_words_leave_out_nothing_and_add_nothing(info):
    ours = [place for place, _ in strings(words("zh", "nodeDefs.json"))]
    assert ours == [place for place, _ in strings(definitions(info))]


def test_every_menu_entry_has_a_word(info):
    for language in LANGUAGES:
        assert sorted(words(language, "main.json")["nodeCategories"]) == categories(info)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_word_is_text_that_the_browser_shows_as_it_stands(language):
    for place, text in strings(words(language, "nodeDefs.json")):
        assert isinstance(text, str) and text.strip() == text != "" and not FORMAT.search(text), (place, text)


def test_chinese_is_chinese():
    for place, text in strings(words("zh", "nodeDefs.json")):
        assert CHINESE.search(text) or (place.endswith("/name") and text in NAMES), (place, text)


def test_a_translation_keeps_the_choices_and_numbers_of_its_original(info):
    """Choices are the same in each language: a tooltip that explains one must name it as the widget does."""
    translated = words("zh", "nodeDefs.json")
    for name, node in info.items():
        shown = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        for given, form in shown.items():
            kind = form[0] if isinstance(form[0], list) else form[1].get("options", []) if form[0] == "COMBO" else []
            original, chinese = form[1]["tooltip"], translated[name]["inputs"][given]["tooltip"]
            for choice in kind:
                if re.search(rf"\b{re.escape(choice)}:", original):
                    assert re.search(rf"{re.escape(choice)}[：）、]|{re.escape(choice)} 和", chinese), (given, choice)
            missing = set(re.findall(r"\d+(?:\.\d+)?", original)) - set(re.findall(r"\d+(?:\.\d+)?", chinese))
            assert not missing, (name, given, missing)


def test_two_inputs_of_a_node_never_share_a_name():
    for language in LANGUAGES:
        for name, node in words(language, "nodeDefs.json").items():
            names = [entry["name"] for entry in node["inputs"].values()]
            assert len(set(names)) == len(names), (language, name)


def test_the_live_host_serves_both_languages(comfyui):
    served = comfyui.get("/api/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"] == words(language, "nodeDefs.json")
        assert served[language]["nodeCategories"] == words(language, "main.json")["nodeCategories"]
