"""Test the judge: correct images through the VAE must pass; images with one error must fail in its columns."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attributes.judge import score, summarise
from attributes.world import COLOURS, OPPOSITE, SHAPES, Group, Scene, arrange, draw_image, sample_scene
from training.render import BATCH

NUMBER = 512
ThroughVae = Callable[[Tensor], Tensor]  # images [B, H, W, 3] -> the same, encoded and decoded


def _other(names: list[str], *taken: str) -> str:
    return next(name for name in names if name not in taken)


def _with_group(scene: Scene, **changes) -> Scene:
    first, *rest = scene.groups
    return dataclasses.replace(scene, groups=(dataclasses.replace(first, **changes), *rest))


def wrong_colour(scene: Scene) -> Scene:
    """Give the first group another colour."""
    return _with_group(scene, colour=_other(list(COLOURS), *(group.colour for group in scene.groups)))


def wrong_shape(scene: Scene) -> Scene:
    """Give the first group another shape."""
    return _with_group(scene, shape=_other(list(SHAPES), scene.groups[0].shape))


def wrong_count(scene: Scene) -> Scene:
    """Remove an object of the first group, or add one to a single object."""
    count = scene.groups[0].count
    return _with_group(scene, count=count - 1 if count > 1 else 2)


def wrong_relation(scene: Scene) -> Scene:
    """Exchange the positions of the groups."""
    return dataclasses.replace(scene, relation=OPPOSITE[scene.relation])


def extra_object(scene: Scene) -> Scene:
    """Add a group of another colour."""
    colour = _other(list(COLOURS), scene.groups[0].colour)
    return Scene((scene.groups[0], Group(1, colour, "circle")), "left", scene.background)


# Error -> (the change, the columns that must detect it, the number of groups of its scenes, None for any).
ERRORS: dict[str, tuple[Callable[[Scene], Scene], tuple[str, ...], int | None]] = {
    "wrong colour": (wrong_colour, ("colour",), None),
    "wrong shape": (wrong_shape, ("shape",), None),
    "wrong count": (wrong_count, ("count",), None),
    "wrong relation": (wrong_relation, ("spatial",), 2),
    "extra object": (extra_object, ("colour", "count"), 1),
}


def judge_scenes(expected: list[Scene], drawn: list[Scene], through: ThroughVae | None, seed: int) -> list[dict]:
    """Score images of the `drawn` scenes against the `expected` ones."""
    rng = random.Random(seed)
    scores = []
    for start in range(0, len(expected), BATCH):
        part = slice(start, start + BATCH)
        images = np.stack([draw_image(scene, arrange(scene, rng)) for scene in drawn[part]])
        if through is not None:
            images = through(torch.from_numpy(images)).numpy()
        scores += [score(image, scene) for image, scene in zip(images, expected[part], strict=True)]
    return scores


def try_judge(through: ThroughVae | None, number: int = NUMBER) -> dict[str, dict]:
    """Summarize correct images ("truth") and, for each error, the percent of images in which it was detected."""
    rng = random.Random("judge")
    truth = [sample_scene(rng, held_out=index % 2 == 0) for index in range(number)]
    out = {"truth": summarise(judge_scenes(truth, truth, through, seed=1))}
    for name, (change, columns, groups) in ERRORS.items():
        expected = [sample_scene(rng, groups=groups) for _ in range(number // 4)]
        scores = judge_scenes(expected, [change(scene) for scene in expected], through, seed=2)
        detected = [{column: not entry[column] for column in columns} | {"all": not entry["all"]} for entry in scores]
        out[name] = summarise(detected)
    return out
