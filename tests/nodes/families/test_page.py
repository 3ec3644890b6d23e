"""docs/families.md is what the command prints today: its rows, columns and verdicts; figures differ by machine."""

from __future__ import annotations

import importlib
import re

import comfy.supported_models
import pytest

from scripts.environment import ROOT
from tests.nodes.families.node_cells import CELLS
from tests.nodes.families.page import page, refused
from tests.nodes.families.tiny import FAMILIES

STORED = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
# Quick ones, and one with each refusal.
LIVE = (
    *("FLUX.1 dev", "Qwen-Image with a text mask", "LTX-Video", "LTX-2", "Mochi", "Anima", "Cosmos-Predict2"),
    *("Kandinsky 5 Image", "Wan 2.1", "Wan 2.2 image to video", "MiniMax H3", "CogVideoX", "Z-Image Pixel Space"),
)
NOTE = re.compile(r"^(\d+)\. (.+)$", re.M)


def verdicts(text: str) -> dict[str, dict[str, str]]:
    """Model -> node -> "exact", or another word with its note. Args: text, a page."""
    notes, found = dict(NOTE.findall(text.partition("## Notes")[2])), {}
    for table in re.split(r"^## ", text, flags=re.M):
        head, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")] or [[]]
        if head[:1] == ["model"]:
            for name, *cells in rows[1:]:
                found.setdefault(name, {}).update(zip(head[1:], (said(cell, notes) for cell in cells), strict=True))
    return found


def said(cell: str, notes: dict[str, str]) -> str:
    word, _, rest = cell.partition(" ")
    return f"{word}: {notes[rest.strip('()')]}" if rest.startswith("(") else word


def test_the_page_has_every_tiny_family_and_every_node(pack):
    stored = verdicts(STORED)
    assert list(stored) == list(FAMILIES)
    assert all(list(row) == list(CELLS) for row in stored.values())
    nodes = {column.split()[0] for column in CELLS}
    assert nodes | {"MMDiTLoader", "TripleTextEncode"} == set(pack.NODE_CLASS_MAPPINGS)  # these two take no MODEL


def test_every_cell_is_exact_or_refused_by_its_node():
    for name, row in verdicts(STORED).items():
        for column, word in row.items():
            unchanged = column == "PrecomputeModulation" and word.startswith("unchanged: ")
            assert word == "exact" or unchanged or word.startswith(f"refused: {column.split()[0]}: "), (name, column)


def test_each_refusal_is_in_a_family_that_the_live_part_runs():
    """Why a MODEL is unchanged is tested with the modulation of every family."""
    stored = verdicts(STORED)
    words = {name: {word for word in row.values() if not word.startswith("unchanged")} for name, row in stored.items()}
    live = {word for name in LIVE for word in words[name]}
    assert {word for row in words.values() for word in row} <= live


@pytest.mark.parametrize("name", LIVE)
def test_the_verdicts_of_a_family_are_what_comes_out_today(pack, name):
    live = page(pack, (name,))
    assert verdicts(live) == {name: verdicts(STORED)[name]}
    assert STORED.partition("## The block nodes")[0] == live.partition("## The block nodes")[0]


def test_the_refused_models_are_what_the_command_prints(pack):
    classes = importlib.import_module(f"{pack.__name__}.nodes.comfyui.families").REFUSED
    if all(hasattr(comfy.supported_models, kind) for kind in classes):  # older ones lack some, and the page lists all
        assert STORED.endswith(refused(pack))
