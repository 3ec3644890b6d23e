"""The web files: small, complete, and nothing fetched from other servers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web"
JS = WEB / "js"
ENTRY = JS / "mmdit.js"
ALL_NODES = JS / "all_nodes.mjs"
SCRIPTS = sorted(JS.rglob("*js"))
STYLES = sorted((WEB / "css").glob("*.css"))
MAX_ENTRY_BYTES = 11_200  # loaded on each visit, whether the pack is used or not
MAX_FIRST_NODE_BYTES = 87_000  # loaded with the first node of any type
MAX_TOTAL_BYTES = 155_000  # 4,000 of them in Chinese alone
STATIC_IMPORT, DYNAMIC_IMPORT = r'(?:from|^import) "(\.[^"]+)"', r'import\("(\.[^"]+)"\)'


def test_comfyui_loads_one_small_script_with_the_page():
    """ComfyUI imports every .js below web/ at startup."""
    assert list(WEB.rglob("*.js")) == [ENTRY]
    assert ENTRY.stat().st_size < MAX_ENTRY_BYTES


def loaded(*paths: Path, dynamic: bool = False) -> set[Path]:
    """Scripts, everything that they import statically, and their style sheets; dynamic: `import(...)` too."""
    kinds = (STATIC_IMPORT, DYNAMIC_IMPORT) if dynamic else (STATIC_IMPORT,)
    found: set[Path] = set()
    pending = list(paths)
    while pending:
        path = pending.pop()
        if path in found or not path.is_relative_to(JS):
            continue
        found.add(path)
        text = path.read_text(encoding="utf-8")
        names = [name for kind in kinds for name in re.findall(kind, text, re.MULTILINE)]
        pending += [(path.parent / name).resolve() for name in names]
        found |= {WEB / "css" / name for name in re.findall(r'addStyles\("([^"]+)"\)', text)}
    return found


def size_of(paths: set[Path]) -> int:
    return sum(path.stat().st_size for path in paths - {ENTRY})


# The modules that mmdit.js loads: all_nodes.mjs with any node, each of the others with the nodes that need it.
NAMES = re.findall(r'"([\w/]+\.mjs)"', ENTRY.read_text(encoding="utf-8"))
BY_NODE = sorted({JS / name for name in NAMES} - {ALL_NODES})


@pytest.mark.parametrize("path", BY_NODE, ids=lambda path: path.stem)
def test_the_modules_of_a_first_node_stay_small(path):
    assert size_of(loaded(ALL_NODES, path)) < MAX_FIRST_NODE_BYTES


def test_every_script_and_style_sheet_is_used_and_their_total_stays_small():
    assert {path.suffix for path in SCRIPTS} == {".js", ".mjs"} and len(BY_NODE) == 4
    used = loaded(ALL_NODES, *BY_NODE, dynamic=True)
    assert used == {*SCRIPTS, *STYLES}
    assert size_of(used) < MAX_TOTAL_BYTES


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_nothing_is_fetched_from_another_server_and_no_text_runs_as_code(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"https?://|//cdn|\beval\(|new Function|innerHTML|document\.write|@import|url\(", text)
    assert not found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_import_is_a_module_of_the_pack_or_a_public_one_of_comfyui(path):
    # web/js/ is served as /extensions/<pack>/js/; ComfyUI's public modules are in /scripts/.
    up = "../" * (3 + len(path.parent.relative_to(JS).parts))
    for source in re.findall(r'(?:from|import|import\() ?"([^"]+)"', path.read_text(encoding="utf-8")):
        if "/scripts/" in source:
            assert source in {f"{up}scripts/app.js", f"{up}scripts/api.js"}
        else:
            assert (path.parent / source).resolve() in SCRIPTS


def test_every_shipped_workflow_has_a_note_and_titles_in_chinese():
    texts = json.loads((WEB / "notes" / "zh.json").read_text(encoding="utf-8"))
    files, titles = {}, set()
    for path in sorted((WEB.parent / "workflows").glob("*.json")):
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            if node["type"] == "MarkdownNote":
                files[node["title"]] = path.stem
            elif "title" in node:
                titles.add(node["title"])
    assert {title: note["file"] for title, note in texts["notes"].items()} == files
    assert set(texts["titles"]) == titles
    # The same names of files, models and inputs in both languages.
    for note in texts["notes"].values():
        (english,) = (
            node["widgets_values"][0]
            for node in json.loads((WEB.parent / "workflows" / f"{note['file']}.json").read_text(encoding="utf-8"))[
                "nodes"
            ]
            if node["type"] == "MarkdownNote"
        )
        names = set(re.findall(r"[\w.-]+\.safetensors|\*\*([a-z_0-9]+)\*\*", english)) - {""}
        missing = {name for name in names if name and name not in note["note"]}
        assert not missing, (note["file"], missing)
        assert english.count("\n- ") == note["note"].count("\n- "), note["file"]
