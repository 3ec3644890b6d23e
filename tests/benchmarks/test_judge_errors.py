"""A small part of the judge's measurement: right images pass, each fault fails in its columns."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attributes.judge import COLUMNS, UNCLEAR, score
from attributes.world import OPPOSITE, Group, Scene
from benchmarks.judge.__main__ import RIGHT, images_of, judged_right, measure
from benchmarks.judge.changes import UNKNOWN_SHAPES
from benchmarks.judge.faults import FAULTS, faulty_image
from benchmarks.judge.images import draw, flat, right_image, sample_drawing, scaled

SEED, RIGHT_IMAGES, EACH = 9, 80, 4  # not the seeds of docs/judge.md


def test_at_most_one_of_80_right_images_is_refused():
    found = [score(image, scene) for scene, image in images_of(RIGHT, SEED, RIGHT_IMAGES)]
    assert sum(not one["all"] or one[UNCLEAR] for one in found) <= 1


def test_at_most_one_in_a_hundred_faulty_images_is_judged_wrongly():
    errors = [
        (kind, index)
        for kind in FAULTS
        for index, (scene, image) in enumerate(images_of(kind, SEED, EACH))
        if not judged_right(kind, score(image, scene))
    ]
    assert len(errors) <= EACH * len(FAULTS) // 100, errors


def test_there_are_at_least_twenty_faults_and_every_one_names_its_columns():
    assert len(FAULTS) >= 20
    assert all(columns and set(columns) < set(COLUMNS) for _, columns in FAULTS.values())


def test_spades_on_white_are_no_circles_on_black():
    """The image that was once right in everything."""
    drawn = Scene((Group(3, "red", "circle"), Group(1, "blue", "star")), "left", "black")
    rng = random.Random(3)
    drawing = sample_drawing(drawn, rng)
    drawing.ground = flat((255, 255, 255), drawing.width, drawing.height)
    for item in drawing.items:
        if item.shape == "circle":
            item.outline = scaled(UNKNOWN_SHAPES["spade"](), item.side, 0.95)
    found = score(draw(drawing, rng), drawn)
    assert found == {
        **{"background": False, "colour": True, "shape": False, "count": True, "spatial": True},
        **{"all": False, UNCLEAR: True},
    }


@pytest.mark.parametrize("fault", ["heart", "half", "stretched", "hole", "unnamed background", "other axis"])
def test_a_fault_leaves_the_other_attributes_right(fault):
    wrong = (*FAULTS[fault][1], "all", UNCLEAR)
    for scene, image in images_of(fault, SEED + 1, 6):
        assert all(right for column, right in score(image, scene).items() if column not in wrong)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**30), st.sampled_from([RIGHT, *FAULTS]))
def test_a_mirrored_or_extended_image_is_judged_alike(seed, kind):
    rng = random.Random(seed)
    scene, image = right_image(rng) if kind == RIGHT else faulty_image(kind, rng)
    mirrored = OPPOSITE[scene.relation] if scene.relation in ("left", "right") else scene.relation
    found = score(image, scene)["all"]
    assert score(np.ascontiguousarray(image[:, ::-1]), replace(scene, relation=mirrored))["all"] == found
    if kind == RIGHT:
        assert score(np.pad(image, ((8, 0), (0, 16), (0, 0)), mode="edge"), scene)["all"] == found


def test_the_measurement_counts_both_sets():
    number = len(FAULTS)
    found = measure(SEED, number)
    assert set(found) == {RIGHT, *FAULTS} and found[RIGHT]["images"] == number
    assert sum(row["images"] for kind, row in found.items() if kind != RIGHT) == number
    assert all(row["passed"] <= row["errors"] for kind, row in found.items() if kind != RIGHT)
