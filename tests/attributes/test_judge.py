"""The judge: correct images pass, and each kind of error fails in its own columns."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from attributes.judge import COLUMNS, UNCLEAR, score, summarise, wilson
from attributes.objects import classify, find_objects
from attributes.world import BACKGROUNDS, COLOURS, SHAPES, Group, Scene, arrange, draw_image, sample_scene, shape_mask
from benchmarks.attributes.judge_trial import ERRORS, judge_scenes, try_judge


def _soften(images):
    """A blur of half a pixel and noise, as in decoded images."""
    noise = np.random.default_rng(0).normal(0, 0.02, images.shape)
    return (ndimage.gaussian_filter(images, (0, 0.5, 0.5, 0)) + noise).clip(0, 1).astype(np.float32)


def test_correct_images_pass_in_every_column():
    rng = random.Random(0)
    scenes = [sample_scene(rng, held_out=index % 2 == 0) for index in range(200)]
    summary = summarise(judge_scenes(scenes, scenes, None, seed=3))
    assert {column: summary[column]["percent"] for column in COLUMNS} == dict.fromkeys(COLUMNS, 100.0)


@pytest.mark.parametrize("error", ERRORS)
def test_one_wrong_attribute_fails_and_the_others_pass(error):
    change, columns, groups = ERRORS[error]
    rng = random.Random(error)
    expected = [sample_scene(rng, groups=groups) for _ in range(60)]
    scores = judge_scenes(expected, [change(scene) for scene in expected], None, seed=4)
    assert not any(entry[column] for entry in scores for column in columns)
    assert not any(entry["all"] for entry in scores)
    untouched = {
        "wrong shape": ("background", "colour", "count"),
        "wrong count": ("colour", "shape"),
        "wrong relation": COLUMNS[:4],
    }
    assert all(entry[column] for entry in scores for column in untouched.get(error, ()))


def test_soft_and_noisy_images_pass():
    rng = random.Random(1)
    scenes = [sample_scene(rng) for _ in range(60)]
    images = _soften(np.stack([draw_image(scene, arrange(scene, rng)) for scene in scenes]))
    passed = [score(image, scene)["all"] for image, scene in zip(images, scenes, strict=True)]
    assert sum(passed) >= 59


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_colour_is_detected_on_every_background(colour, background):
    scene = Scene((Group(1, colour, "circle", "small"),), background=background)
    background_found, found = find_objects(draw_image(scene, arrange(scene, random.Random(0))))
    assert background_found == background and [item.colour for item in found] == [colour]


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_classified_at_every_size(shape):
    for side in range(19, 36):
        assert classify(shape_mask(shape, side))[0] == shape


def test_a_cross_is_an_unknown_shape():
    cross = np.zeros((24, 24), np.float32)
    cross[10:14], cross[:, 10:14] = 1, 1
    assert classify(cross)[0] == "unknown"


def test_an_empty_image_is_unclear_and_right_in_its_background_only():
    scene = Scene((Group(1, "red", "circle"), Group(1, "blue", "star")), "left")
    found = score(np.ones((128, 128, 3), np.float32), scene)
    assert found.pop("background") and found.pop(UNCLEAR) and not any(found.values())


def test_one_group_has_no_spatial_column():
    scene = Scene((Group(2, "red", "circle"),))
    assert "spatial" not in score(draw_image(scene, arrange(scene, random.Random(0))), scene)


def test_two_colours_that_touch_are_two_objects():
    image = np.ones((128, 128, 3), np.float32)
    image[40:70, 30:60] = np.array(COLOURS["red"]) / 255
    image[40:70, 60:90] = np.array(COLOURS["blue"]) / 255
    assert sorted(item.colour for item in find_objects(image)[1]) == ["blue", "red"]


def test_two_colours_in_one_outline_are_one_object_of_unknown_colour():
    image = np.ones((128, 128, 3), np.float32)
    image[40:70, 40:55], image[40:70, 55:70] = np.array(COLOURS["red"]) / 255, np.array(COLOURS["blue"]) / 255
    (item,) = find_objects(image)[1]
    assert (item.colour, item.shape) == ("unknown", "square")


def test_a_background_that_the_caption_does_not_name_may_be_any_flat_one():
    drawn = Scene((Group(1, "red", "circle"),), background="gray")
    image = draw_image(drawn, arrange(drawn, random.Random(0)))
    for background, right in (("gray", True), ("", True), ("white", False), ("black", False)):
        assert score(image, replace(drawn, background=background))["background"] == right
    image[:, 64:] += 0.3 * (image[:, 64:] == image[0, 0])  # two grays
    found = score(image, replace(drawn, background=""))
    assert not found["background"] and not found["all"] and found[UNCLEAR]


def test_an_unclear_image_is_never_right():
    rng = np.random.default_rng(0)
    scene = Scene((Group(1, "red", "circle"),))
    for image in (rng.random((96, 128, 3)), np.full((96, 96, 3), 0.3), np.tile(rng.random((96, 1, 3)), (1, 96, 1))):
        found = score(image.astype(np.float32), scene)
        assert found[UNCLEAR] and not found["all"] and not found["shape"]


def test_the_interval_contains_the_fraction_and_narrows_with_more_images():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson(800, 1000)
    assert low < 0.8 < high and high - low < 0.06
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == pytest.approx(1)


def test_the_trial_reports_the_truth_and_every_error():
    figures = try_judge(None, number=32)
    assert set(figures) == {"truth", *ERRORS}
    assert all(figures[name][column]["percent"] == 100 for name in ERRORS for column in ERRORS[name][1])
