from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from attributes.prompt_sets import CATEGORIES, FOLDER, SETS, read_set
from attributes.words import parse_caption
from attributes.world import is_held_out
from evaluation.make_prompt_sets import make_set, stated, to_json
from evaluation.prompts import check_expected


@pytest.mark.parametrize("name", SETS)
def test_the_files_equal_what_their_script_writes(name):
    assert (FOLDER / f"{name}.json").read_text(encoding="utf-8") == to_json(make_set(name))
    assert read_set(name) == make_set(name)


@pytest.mark.parametrize("name", SETS)
def test_any_first_prompts_are_a_fair_mix_and_no_text_is_repeated(name):
    entries = read_set(name)
    assert len(entries) == 480 == len({entry.text.lower() for entry in entries})
    for number in range(1, len(entries) + 1):
        counts = Counter(entry.category for entry in entries[:number])
        assert max(counts.values()) - min(counts.get(category, 0) for category in CATEGORIES) <= 1


def test_a_shapes_prompt_expects_the_scene_that_its_text_states_and_none_is_held_out():
    for entry in read_set("shapes"):
        scene = parse_caption(entry.text)
        assert entry.expected == stated(scene)
        assert not is_held_out(scene)


def test_an_objects_prompt_names_all_that_it_expects():
    for entry in read_set("objects"):
        check_expected(entry.expected, entry.text)
        words = entry.text.lower().rstrip(".").split()
        for item in entry.expected["include"]:
            assert item["count"] > 1 or item["class"] in words
            assert item.get("color", words[0]) in words


def test_an_entry_is_frozen_and_an_unknown_set_is_refused():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_set("objects")[0].text = "other"
    with pytest.raises(ValueError, match="unknown prompt set 'faces'; known: shapes, objects"):
        read_set("faces")
