"""Both languages translate every text of the nodes' definitions, and the server serves them."""

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
NAMES = {"CLIP", "VAE"}  # the same in Chinese
FORMAT = re.compile(r"[{}@|]")  # ComfyUI's i18n reads these as pathholders, links and plurals


def words(language: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / name).read_text(encoding="utf-8"))


def strings(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a file with the path of its keys."""
    if not isinstance(tree, dict):
        yield path, tree
        return
    for key, value in tree.items():
        yield from strings(value, f"{path}/{key}")


@pytest.fixture(scope="module")
def info(comfyui, pack) -> dict[str, Any]:
    """The pack's nodes as the live server describes them."""
    found = of_pack(comfyui.object_info())
    assert set(found) == set(pack.NODE_CLASS_MAPPINGS)
    return found


def test_the_english_texts_equal_the_definitions(info):
    assert words("en", "nodeDefs.json") == definitions(info), "run `python -m scripts.make_locales`"


def test_the_chinese_texts_are_complete_and_add_nothing(info):
    ours = [path for path, _ in strings(words("zh", "nodeDefs.json"))]
    assert ours == [path for path, _ in strings(definitions(info))]


def test_every_menu_entry_is_translated(info):
    for language in LANGUAGES:
        assert sorted(words(language, "main.json")["nodeCategories"]) == categories(info)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_contains_characters_of_the_message_format(language):
    for path, text in strings(words(language, "nodeDefs.json")):
        assert isinstance(text, str) and text.strip() == text != "" and not FORMAT.search(text), (path, text)


def test_chinese_texts_are_chinese():
    for path, text in strings(words("zh", "nodeDefs.json")):
        assert CHINESE.search(text) or (path.endswith("/name") and text in NAMES), (path, text)


def test_a_translation_keeps_the_choices_and_numbers_of_its_original(info):
    """Choices are not translated: a tooltip that explains one must name it as the widget does."""
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


def test_the_server_serves_both_languages(comfyui):
    served = comfyui.get("/api/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"] == words(language, "nodeDefs.json")
        assert served[language]["nodeCategories"] == words(language, "main.json")["nodeCategories"]
