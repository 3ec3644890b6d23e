"""Captions parsed into scenes."""

from __future__ import annotations

import dataclasses
import random

import pytest

from attributes.words import CaptionError, parse_caption
from attributes.world import OPPOSITE, Group, Scene, sample_scene
from benchmarks.attributes.prompts import SETS, read_prompts
from training.captions import describe


def meaning(scene: Scene) -> tuple:
    """The groups from left to right or top to bottom, and their relation, without sizes."""
    groups = [dataclasses.replace(group, size="") for group in scene.groups]
    if scene.relation in ("right", "below"):
        return groups[::-1], OPPOSITE[scene.relation]
    return groups, scene.relation


@pytest.mark.parametrize("name", SETS)
def test_every_evaluation_prompt_parses_into_its_scene(name):
    for prompt in read_prompts(name):
        assert meaning(parse_caption(prompt.text)) == meaning(prompt.scene), prompt.text


def test_every_complete_caption_parses_into_its_scene():
    rng = random.Random(3)
    for _ in range(2000):
        scene = sample_scene(rng)
        caption = describe(scene, rng, complete=True)
        assert meaning(parse_caption(caption)) == meaning(scene), caption


def test_background_and_size_are_parsed_if_the_caption_names_them():
    scene = parse_caption("Two small green stars below three big pink circles, on a grey background.")
    assert scene == Scene((Group(2, "green", "star", "small"), Group(3, "pink", "circle", "large")), "below", "gray")
    assert parse_caption("a red circle") == Scene((Group(1, "red", "circle"),), background="")


@pytest.mark.parametrize(
    ("caption", "missing"),
    [
        ("", "names 0 shapes"),
        ("a castle on a hill", "names 0 shapes"),
        ("a red circle, a blue star and a green square", "names 3 shapes"),
        ("red circles", "how many"),
        ("three circles", "which colour"),
        ("a red circle and a blue star", "where"),
    ],
)
def test_an_incomplete_caption_is_refused_with_what_is_missing(caption, missing):
    with pytest.raises(CaptionError, match=missing):
        parse_caption(caption)
