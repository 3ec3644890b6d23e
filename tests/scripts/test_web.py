"""The web side as files: small, whole, and nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web"
ENTRY = WEB / "js" / "mmdit.js"
SCRIPTS = sorted((WEB / "js").glob("*js"))
STYLES = sorted((WEB / "css").glob("*.css"))
MOST_AT_ONCE = 11_000  # bytes that each visit loads, whether it uses the pack or not
MOST = 60_000  # bytes that come with the first node, whichever it is
MOST_OF_ALL = 110_000
AT_ONCE, LATER = r'(?:from|^import) "\./([^"]+)"', r'import\("\./([^"]+)"\)'


def test_one_small_script_is_loaded_with_the_page():
    """ComfyUI imports every .js below web/ while it opens."""
    assert list(WEB.rglob("*.js")) == [ENTRY]
    assert ENTRY.stat().st_size < MOST_AT_ONCE


def imported(*names: str, later: bool = False) -> set[Path]:
    """Scripts, all that they import at once, and their style sheets; later: also what is behind an `import(...)`."""
    kinds = (AT_ONCE, LATER) if later else (AT_ONCE,)
    found: set[Path] = set()
    ahead = [WEB / "js" / name for name in names]
    while ahead:
        path = ahead.pop()
        if path in found:
            continue
        found.add(path)
        text = path.read_text(encoding="utf-8")
        ahead += [WEB / "js" / name for kind in kinds for name in re.findall(kind, text, re.MULTILINE)]
        found |= {WEB / "css" / name for name in re.findall(r'addStyles\("([^"]+)"\)', text)}
    return found


def weight(paths: set[Path]) -> int:
    return sum(path.stat().st_size for path in paths - {ENTRY})


# What mmdit.js brings: parts.mjs with any node, each of the others with the nodes that need it.
BROUGHT = set(re.findall(r'"(\w+\.mjs)"', ENTRY.read_text(encoding="utf-8"))) - {"parts.mjs"}


@pytest.mark.parametrize("name", sorted(BROUGHT))
def test_what_comes_with_the_first_node_is_small_too(name):
    assert weight(imported("parts.mjs", name)) < MOST


def test_every_script_and_style_sheet_is_used_and_all_together_are_not_heavy():
    assert {path.suffix for path in SCRIPTS} == {".js", ".mjs"} and len(BROUGHT) == 4
    used = imported("parts.mjs", *BROUGHT, later=True)
    assert used == {*SCRIPTS, *STYLES}
    assert weight(used) < MOST_OF_ALL


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere_and_no_text_becomes_a_program(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"https?://|//cdn|\beval\(|new Function|innerHTML|document\.write|@import|url\(", text)
    assert not found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_import_is_a_file_of_ours_or_of_the_host(path):
    for source in re.findall(r'(?:from|import|import\() ?"([^"]+)"', path.read_text(encoding="utf-8")):
        if source.startswith("../../../scripts/"):
            assert source.removeprefix("../../../scripts/") in {"app.js", "api.js"}, "the host's public modules"
        else:
            assert (path.parent / source).resolve() in SCRIPTS
