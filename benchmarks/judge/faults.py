"""The faults of docs/judge.md: each makes one attribute of an image clearly wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from attributes.world import OPPOSITE, SHAPES, Scene, sample_scene

from . import changes
from .changes import UNKNOWN_SHAPES, Change, other_colour, require
from .images import DoesNotFit, Drawing, centre, draw, sample_drawing

Make = Callable[[Scene, random.Random], Drawing]


def with_group(scene: Scene, index: int, **given) -> Scene:
    """The scene with other fields of one group."""
    groups = [replace(group, **given) if i == index else group for i, group in enumerate(scene.groups)]
    return replace(scene, groups=tuple(groups))


def changed_count(step: int) -> Make:
    def drawn(scene: Scene, rng: random.Random) -> Drawing:
        index = rng.randrange(len(scene.groups))
        count = scene.groups[index].count + step
        require(count >= 1)
        return sample_drawing(with_group(scene, index, count=count), rng)

    return drawn


def missing_group(scene: Scene, rng: random.Random) -> Drawing:
    require(len(scene.groups) == 2)
    return sample_drawing(Scene((rng.choice(scene.groups),), background=scene.background), rng)


def wrong_colour(scene: Scene, rng: random.Random) -> Drawing:
    colour, index = other_colour(rng, scene), rng.randrange(len(scene.groups))
    return sample_drawing(with_group(scene, index, colour=colour), rng)


def wrong_shape(scene: Scene, rng: random.Random) -> Drawing:
    index = rng.randrange(len(scene.groups))
    other = rng.choice([shape for shape in SHAPES if shape != scene.groups[index].shape])
    return sample_drawing(with_group(scene, index, shape=other), rng)


def reversed_relation(scene: Scene, rng: random.Random) -> Drawing:
    require(len(scene.groups) == 2)
    return sample_drawing(replace(scene, relation=OPPOSITE[scene.relation]), rng)


def along(scene: Scene) -> int:
    require(len(scene.groups) == 2)
    return 0 if scene.relation in ("left", "right") else 1


def other_axis(scene: Scene, rng: random.Random) -> Drawing:
    axis = along(scene)
    bands = [(index, group.count) for index, group in enumerate(scene.groups)]
    drawing = sample_drawing(scene, rng, bands=bands[:: rng.choice((1, -1))], axis=1 - axis)
    offset = abs(centre(drawing, 0) - centre(drawing, 1))
    require(offset[axis] < 0.2 * offset[1 - axis])
    return drawing


def interleaved(scene: Scene, rng: random.Random) -> Drawing:
    axis, outer = along(scene), rng.randrange(2)
    count = scene.groups[outer].count
    require(count >= 2)
    first = rng.randint(1, count - 1)
    bands = [(outer, first), (1 - outer, scene.groups[1 - outer].count), (outer, count - first)]
    return sample_drawing(scene, rng, bands=bands, axis=axis)


def reversed_sizes(scene: Scene, rng: random.Random) -> Drawing:
    order = ["small", "", "large"]
    require(len(scene.groups) == 2)
    ranks = [order.index(group.size) for group in scene.groups]
    require(ranks[0] != ranks[1])
    return sample_drawing(
        scene, rng, sizes=("too large", "too small") if ranks[0] < ranks[1] else ("too small", "too large")
    )


def wrong_size(scene: Scene, rng: random.Random) -> Drawing:
    index = rng.randrange(len(scene.groups))
    drawn = {"small": "huge", "large": "tiny"}
    require(scene.groups[index].size in drawn)
    sizes = tuple(drawn[group.size] if i == index else group.size for i, group in enumerate(scene.groups))
    return sample_drawing(scene, rng, sizes=sizes)


def changed(change: Change) -> Make:
    def drawn(scene: Scene, rng: random.Random) -> Drawing:
        drawing = sample_drawing(scene, rng)
        change(scene, drawing, rng)
        return drawing

    return drawn


# Fault -> (the drawing with it, the columns that must be False); the order of docs/judge.md.
FAULTS: dict[str, tuple[Make, tuple[str, ...]]] = {
    "named background": (changed(changes.named_background), ("background",)),
    "unnamed background": (changed(changes.unnamed_background), ("background",)),
    "gradient": (changed(changes.gradient), ("background",)),
    "two backgrounds": (changed(changes.two_backgrounds), ("background",)),
    "blotch": (changed(changes.blotch), ("background",)),
    "noise": (changed(changes.noise), ("background",)),
    **{name: (changed(changes.unknown_shape(name)), ("shape",)) for name in UNKNOWN_SHAPES},
    "wrong shape": (wrong_shape, ("shape",)),
    "mixed shapes": (changed(changes.mixed_shapes), ("shape",)),
    "half": (changed(changes.half), ("shape",)),
    "notch": (changed(changes.notch), ("shape",)),
    "hole": (changed(changes.hole), ("shape",)),
    "hollow": (changed(changes.hollow), ("shape",)),
    "stretched": (changed(changes.stretched), ("shape",)),
    "skewed": (changed(changes.skewed), ("shape",)),
    "at the edge": (changed(changes.at_the_edge), ("shape",)),
    "blur": (changed(changes.blur), ("shape",)),
    "unequal sizes": (changed(changes.unequal_sizes), ("shape",)),
    "reversed sizes": (reversed_sizes, ("shape",)),
    "wrong size": (wrong_size, ("shape",)),
    "overlapped": (changed(changes.overlapped), ("shape",)),
    "merged": (changed(changes.merged), ("shape", "count")),
    "stray piece": (changed(changes.stray_piece), ("count",)),
    "unnamed piece": (changed(changes.unnamed_piece), ("count", "colour")),
    "stray line": (changed(changes.stray_line), ("count",)),
    "one more": (changed_count(1), ("count",)),
    "one less": (changed_count(-1), ("count",)),
    "missing group": (missing_group, ("colour", "count")),
    "extra group": (changed(changes.extra_group), ("colour", "count")),
    "wrong colour": (wrong_colour, ("colour",)),
    "one wrong colour": (changed(changes.one_wrong_colour), ("colour",)),
    "exchanged colour": (changed(changes.exchanged_colour), ("count",)),
    "between colours": (changed(changes.between_colours), ("colour",)),
    "two colours": (changed(changes.two_colours), ("colour",)),
    "faint": (changed(changes.faint), ("colour",)),
    "reversed": (reversed_relation, ("spatial",)),
    "other axis": (other_axis, ("spatial",)),
    "interleaved": (interleaved, ("spatial",)),
}


def faulty_image(fault: str, rng: random.Random) -> tuple[Scene, np.ndarray]:
    """A scene and an image of it with one fault."""
    make, _ = FAULTS[fault]
    while True:
        scene = sample_scene(rng, held_out=rng.random() < 0.5)
        try:
            drawing = make(scene, rng)
            return scene, draw(drawing, rng)
        except DoesNotFit:
            continue
