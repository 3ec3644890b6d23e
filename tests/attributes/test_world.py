"""The small model's world: the images that training may show, and their captions."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from attributes.words import POSITION_WORDS, RELATION_WORDS
from attributes.world import (
    COLOURS,
    HELD_OUT_PAIRS,
    HELD_OUT_TRIPLES,
    IMAGE_SIDES,
    OPPOSITE,
    SHAPES,
    UNNAMED_SHAPES,
    Group,
    Scene,
    arrange,
    augment,
    draw_image,
    is_held_out,
    sample_scene,
    triples,
)
from benchmarks.attributes.prompts import SETS, read_prompts, sample_prompts
from training.captions import describe


def test_training_never_samples_a_held_out_combination():
    rng = random.Random(0)
    for _ in range(3000):
        scene = sample_scene(rng)
        assert not {(group.colour, group.shape) for group in scene.groups} & HELD_OUT_PAIRS
        assert not triples(scene) & HELD_OUT_TRIPLES


def test_augmented_scenes_keep_their_names_and_are_never_held_out():
    rng = random.Random(4)
    unnamed = Counter()
    for _ in range(3000):
        scene = augment(sample_scene(rng), rng)
        assert not is_held_out(scene)
        caption = describe(scene, rng, complete=True).lower()
        for group in scene.groups:
            # A caption names a colour as the judge does.
            assert group.colour == min(COLOURS, key=lambda name: math.dist(group.rgb, COLOURS[name]))
            assert group.named == (group.colour in caption)
            unnamed.update(colours=not group.named, shapes=group.shape not in SHAPES)
            assert not any(shape in caption for shape in UNNAMED_SHAPES)
    assert unnamed["colours"] > 600 and unnamed["shapes"] > 400


def test_a_scene_has_one_layout_and_a_single_object_four():
    rng = random.Random(5)
    one, three = Group(1, "blue", "star"), Group(3, "red", "circle")
    layouts = {
        number: len({tuple(arrange(scene, rng)) for _ in range(100)})
        for number, scene in enumerate((Scene((one,)), Scene((three,)), Scene((three, one), "left")))
    }
    assert layouts == {0: 4, 1: 1, 2: 1}


def test_held_out_scenes_have_a_held_out_combination():
    rng = random.Random(1)
    assert all(is_held_out(sample_scene(rng, held_out=True)) for _ in range(300))


@pytest.mark.parametrize(("width", "height"), [*itertools.product(IMAGE_SIDES, IMAGE_SIDES)])
def test_objects_stay_inside_and_apart_at_every_size(width, height):
    rng = random.Random(f"{width}x{height}")
    for _ in range(40):
        scene = sample_scene(rng)
        items = arrange(scene, rng, width, height)
        assert [item.group for item in items] == [
            index for index, group in enumerate(scene.groups) for _ in range(group.count)
        ]
        covered = np.zeros((height, width), int)
        for item in items:
            assert item.x >= 1 and item.y >= 1 and item.x + item.side < width and item.y + item.side < height
            covered[item.y - 1 : item.y + item.side + 1, item.x - 1 : item.x + item.side + 1] += 1
        assert covered.max() == 1


@pytest.mark.parametrize("relation", OPPOSITE)
def test_the_first_group_is_on_its_side_of_the_second(relation):
    rng = random.Random(relation)
    scene = Scene((Group(2, "red", "circle"), Group(3, "blue", "star")), relation)
    for _ in range(50):
        items = arrange(scene, rng)
        axis = "x" if relation in ("left", "right") else "y"
        first = [getattr(item, axis) for item in items if item.group == 0]
        second = [getattr(item, axis) for item in items if item.group == 1]
        if relation in ("left", "above"):
            assert max(first) < min(second)
        else:
            assert min(first) > max(second)


def test_drawn_colours_are_those_of_the_groups():
    scene = Scene((Group(1, "green", "square"),), background="black")
    image = draw_image(scene, arrange(scene, random.Random(0)))
    found = {tuple(pixel) for pixel in (image.reshape(-1, 3) * 255).round().astype(int).tolist()}
    assert COLOURS["green"] in found and (0, 0, 0) in found


def _caption_relation(caption: str, scene: Scene) -> str:
    """The relation of the first group in a caption: by the words between the groups, else by their position words."""
    text = caption.lower()
    swapped = text.index(scene.groups[0].colour) > text.index(scene.groups[1].colour)
    sides = {side: [text.index(word) for word in words if word in text] for side, words in POSITION_WORDS.items()}
    between = text.split(scene.groups[swapped].colour)[1].split(scene.groups[not swapped].colour)[0]
    for side, phrases in RELATION_WORDS.items():
        if any(f" {phrase} " in between for phrase in phrases):
            return OPPOSITE[side] if swapped else side
    for side, indices in sides.items():
        if indices and sides[OPPOSITE[side]] and min(indices) < min(sides[OPPOSITE[side]]):
            return OPPOSITE[side] if swapped else side
    raise AssertionError(f"no relation found in {caption!r}")


def test_captions_have_the_relation_of_their_scene():
    rng = random.Random(2)
    for _ in range(500):
        scene = sample_scene(rng, groups=2)
        assert _caption_relation(describe(scene, rng, complete=True), scene) == scene.relation


def test_complete_captions_name_every_colour_and_shape():
    rng = random.Random(3)
    for _ in range(500):
        scene = sample_scene(rng)
        caption = describe(scene, rng, complete=True)
        assert all(group.colour in caption.lower() and group.shape in caption.lower() for group in scene.groups)


def test_one_meaning_has_many_phrasings():
    rng = random.Random(4)
    scene = Scene((Group(3, "red", "circle"), Group(1, "blue", "star")), "left")
    assert len({describe(scene, rng) for _ in range(300)}) > 150


@pytest.mark.parametrize("name", SETS)
def test_the_prompt_file_equals_the_output_of_its_code(name):
    prompts = sample_prompts(name)
    assert read_prompts(name) == prompts
    assert len({prompt.text.lower() for prompt in prompts}) == len(prompts) >= 500
    assert all(is_held_out(prompt.scene) == SETS[name] for prompt in prompts)
