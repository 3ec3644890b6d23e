"""The web side as files: small, whole, and nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "web"
SCRIPTS = sorted((WEB / "js").glob("*.js"))
STYLES = sorted((WEB / "css").glob("*.css"))
MOST = 60_000  # bytes of scripts that a first visit loads


def test_the_scripts_are_small_enough_to_be_loaded_at_once():
    assert SCRIPTS and STYLES
    assert sum(path.stat().st_size for path in SCRIPTS) < MOST


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere_and_no_text_becomes_a_program(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"https?://|//cdn|\beval\(|new Function|innerHTML|document\.write|@import|url\(", text)
    assert not found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_import_is_a_file_of_ours_or_of_the_host(path):
    for source in re.findall(r'from "([^"]+)"', path.read_text(encoding="utf-8")):
        if source.startswith("../../../scripts/"):
            assert source.removeprefix("../../../scripts/") in {"app.js", "api.js"}, "the host's public modules"
        else:
            assert (path.parent / source).resolve() in SCRIPTS
