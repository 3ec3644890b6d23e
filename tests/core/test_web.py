"""The web side as files: small, whole, and nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web"
ENTRY = WEB / "js" / "mmdit.js"
SCRIPTS = sorted((WEB / "js").glob("*js"))
STYLES = sorted((WEB / "css").glob("*.css"))
MOST_AT_ONCE = 10_000  # bytes that each visit loads, whether it uses the pack or not
MOST = 90_000  # bytes that come with the first node
MOST_LATER = 40_000  # bytes that come when somebody uses what they are for


def test_one_small_script_is_loaded_with_the_page():
    """ComfyUI imports every .js below web/ while it opens."""
    assert list(WEB.rglob("*.js")) == [ENTRY]
    assert ENTRY.stat().st_size < MOST_AT_ONCE


def imported(path: Path, found: set[Path]) -> set[Path]:
    """A script and all that it imports at once; what is behind an `import(...)` comes later."""
    found.add(path)
    for source in re.findall(r'(?:from|^import) "(\./[^"]+)"', path.read_text(encoding="utf-8"), re.MULTILINE):
        if (path.parent / source) not in found:
            imported(path.parent / source, found)
    return found


def test_the_other_scripts_are_small_too():
    assert {path.suffix for path in SCRIPTS} == {".js", ".mjs"} and STYLES
    first = imported(WEB / "js" / "parts.mjs", {ENTRY})
    later = {WEB / "js" / name for name in ("curve.mjs", "compare_run.mjs", "compare_view.mjs")}
    later |= {WEB / "js" / "compare_graph.mjs", WEB / "css" / "curve.css", WEB / "css" / "compare.css"}
    assert first == {*SCRIPTS} - later, "every script comes with the first node, or is one of those that come later"
    assert sum(path.stat().st_size for path in {*first, *STYLES} - later) < MOST
    assert sum(path.stat().st_size for path in later) < MOST_LATER


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
