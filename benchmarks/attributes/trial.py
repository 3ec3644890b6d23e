"""Judge the judge: true pictures through the VAE must pass; pictures with one attribute wrong must fail just there."""

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
ThroughVae = Callable[[Tensor], Tensor]  # pictures [B, H, W, 3] -> the same, encoded and decoded


def _other(names: list[str], *taken: str) -> str:
    return next(name for name in names if name not in taken)


def _with_group(scene: Scene, **changes) -> Scene:
    first, *rest = scene.groups
    return dataclasses.replace(scene, groups=(dataclasses.replace(first, **changes), *rest))


def wrong_colour(scene: Scene) -> Scene:
    return _with_group(scene, colour=_other(list(COLOURS), *(group.colour for group in scene.groups)))


def wrong_shape(scene: Scene) -> Scene:
    return _with_group(scene, shape=_other(list(SHAPES), scene.groups[0].shape))


def wrong_count(scene: Scene) -> Scene:
    count = scene.groups[0].count
    return _with_group(scene, count=count - 1 if count > 1 else 2)


def wrong_relation(scene: Scene) -> Scene:
    return dataclasses.replace(scene, relation=OPPOSITE[scene.relation])


def extra_object(scene: Scene) -> Scene:
    """One more group, of a colour that nobody asked for."""
    colour = _other(list(COLOURS), scene.groups[0].colour)
    return Scene((scene.groups[0], Group(1, colour, "circle")), "left", scene.background)


# Each error, the columns that must notice it, and the number of groups its scenes have (None = as they come).
ERRORS: dict[str, tuple[Callable[[Scene], Scene], tuple[str, ...], int | None]] = {
    "wrong colour": (wrong_colour, ("colour",), None),
    "wrong shape": (wrong_shape, ("shape",), None),
    "wrong count": (wrong_count, ("count",), None),
    "wrong relation": (wrong_relation, ("spatial",), 2),
    "extra object": (extra_object, ("colour", "count"), 1),
}


def judge_scenes(asked: list[Scene], shown: list[Scene], through: ThroughVae | None, seed: int) -> list[dict]:
    """Scores of pictures that show `shown` against what was `asked`."""
    rng = random.Random(seed)
    scores = []
    for start in range(0, len(asked), BATCH):
        part = slice(start, start + BATCH)
        pictures = np.stack([draw_image(scene, arrange(scene, rng)) for scene in shown[part]])
        if through is not None:
            pictures = through(torch.from_numpy(pictures)).numpy()
        scores += [score(picture, scene) for picture, scene in zip(pictures, asked[part], strict=True)]
    return scores


def try_judge(through: ThroughVae | None, number: int = NUMBER) -> dict[str, dict]:
    """Summaries: "truth" must be right everywhere, each error wrong in the columns that ERRORS names for it."""
    rng = random.Random("judge")
    truth = [sample_scene(rng, held_out=index % 2 == 0) for index in range(number)]
    out = {"truth": summarise(judge_scenes(truth, truth, through, seed=1))}
    for name, (change, columns, groups) in ERRORS.items():
        asked = [sample_scene(rng, groups=groups) for _ in range(number // 4)]
        scores = judge_scenes(asked, [change(scene) for scene in asked], through, seed=2)
        noticed = [{column: not entry[column] for column in columns} | {"all": not entry["all"]} for entry in scores]
        out[name] = summarise(noticed)
    return out
