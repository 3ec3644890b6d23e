"""The world that the small model learns: flat pictures of a few simple shapes.

A `Scene` is the meaning (what a caption may say and a judge can check), `place` turns it into pixels' positions, and
`paint` draws them. Colour-shape pairs and colour-shape-relation triples listed in `HELD_OUT_*` never appear in a
training picture, so prompts on them show whether the model composes what it knows.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 150, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 220, 40),
    "orange": (245, 130, 20),
    "purple": (130, 40, 170),
    "pink": (250, 130, 190),
    "cyan": (50, 205, 220),
}
BACKGROUNDS = {"white": (255, 255, 255), "gray": (128, 128, 128), "black": (0, 0, 0)}
SHAPES = ("circle", "square", "triangle", "star")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RELATIONS = tuple(OPPOSITE)
SIZES = {"": 24, "small": 20, "large": 28}  # side in pixels
IMAGE_SIDES = (96, 128, 160)
# Shapes and colours that training shows and no caption names. With eight inks and four outlines alone, a model learns
# that a star is never yellow, and paints the asked one orange; among inks and outlines of every kind it has no such
# rule.
UNNAMED_SHAPES = (
    *("diamond", "hexagon", "cross", "ring", "bar", "pillar", "moon", "arrow", "chevron", "hourglass", "bowtie"),
    *("corner", "tee"),
)
UNNAMED_SHAPE_PROBABILITY, UNNAMED_COLOUR_PROBABILITY = 0.3, 0.35
COLOUR_JITTER = 8  # of 255: how far a named colour strays in each channel; the two closest inks are 90 apart
MIN_COLOUR_CONTRAST = 70  # of 255, RGB distance of an unnamed colour from the background
# Objects lie in the cells of a grid, each cell 2 x 2 image tokens: a shape is then one of few patterns rather than one
# of hundreds, and a model of this size learns it in an hour.
CELL = 32

HELD_OUT_PAIRS = frozenset({("yellow", "star"), ("purple", "circle"), ("orange", "square"), ("cyan", "triangle")})
HELD_OUT_TRIPLES = frozenset(
    {
        ("red", "square", "left"),
        ("red", "star", "below"),
        ("green", "circle", "above"),
        ("green", "triangle", "right"),
        ("blue", "star", "above"),
        ("blue", "triangle", "below"),
        ("yellow", "circle", "right"),
        ("yellow", "square", "above"),
        ("orange", "triangle", "left"),
        ("orange", "star", "right"),
        ("purple", "star", "left"),
        ("purple", "square", "below"),
        ("pink", "circle", "left"),
        ("pink", "triangle", "above"),
        ("cyan", "square", "right"),
        ("cyan", "circle", "below"),
    }
)

# How many cells a group of so many takes along the relation's axis and across it: a line across it, four in a square.
FORMATIONS = {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2)}


@dataclass(frozen=True)
class Group:
    """Objects of one kind: `count` of them, one colour, one shape, one size word ("" says nothing).

    `ink` is the very RGB, 0 to 255, where it is not the colour's own; `named` is false for an ink that `colour` only
    comes closest to.
    """

    count: int
    colour: str
    shape: str
    size: str = ""
    ink: tuple[int, int, int] | None = None
    named: bool = True


@dataclass(frozen=True)
class Scene:
    """One or two groups; `relation` says where the first lies as seen from the second ("" with one group)."""

    groups: tuple[Group, ...]
    relation: str = ""
    background: str = "white"


@dataclass(frozen=True)
class PlacedObject:
    """One object on the canvas: top-left corner and side in pixels."""

    group: int
    x: int
    y: int
    side: int


def triples(scene: Scene) -> set[tuple[str, str, str]]:
    """Every (colour, shape, relation to the other group) that the scene shows."""
    if not scene.relation:
        return set()
    sides = (scene.relation, OPPOSITE[scene.relation])
    return {(group.colour, group.shape, side) for group, side in zip(scene.groups, sides, strict=True)}


def is_held_out(scene: Scene) -> bool:
    """True if training never shows this scene's combination."""
    pairs = {(group.colour, group.shape) for group in scene.groups}
    return bool(pairs & HELD_OUT_PAIRS or triples(scene) & HELD_OUT_TRIPLES)


def sample_scene(rng: random.Random, *, groups: int | None = None, held_out: bool = False) -> Scene:
    """Draw a scene at random; two groups always differ in colour, and at most six objects lie in it."""
    while True:
        number = groups or (1 if rng.random() < 0.35 else 2)
        colours = rng.sample(list(COLOURS), number)
        counts = [rng.randint(1, 4) for _ in range(number)]
        if sum(counts) > 6:
            continue
        size_words = [rng.choice(("", "", "", "small", "large")) for _ in range(number)]
        members = tuple(
            Group(count, colour, rng.choice(SHAPES), size)
            for count, colour, size in zip(counts, colours, size_words, strict=True)
        )
        relation = rng.choice(RELATIONS) if number == 2 else ""
        scene = Scene(members, relation, rng.choice(list(BACKGROUNDS)))
        if is_held_out(scene) == held_out:
            return scene


def augment(scene: Scene, rng: random.Random) -> Scene:
    """A scene for training: inks around the colours' own, and now and then an ink or a shape that has no name here."""
    while True:
        members = tuple(_vary_group(group, scene.background, rng) for group in scene.groups)
        varied = dataclasses.replace(scene, groups=members)
        if len({group.colour for group in members}) == len(members) and not is_held_out(varied):
            return varied


def _vary_group(group: Group, background: str, rng: random.Random) -> Group:
    shape = rng.choice(UNNAMED_SHAPES) if rng.random() < UNNAMED_SHAPE_PROBABILITY else group.shape
    if rng.random() >= UNNAMED_COLOUR_PROBABILITY:
        strayed = (value + rng.randint(-COLOUR_JITTER, COLOUR_JITTER) for value in COLOURS[group.colour])
        red, green, blue = (min(255, max(0, value)) for value in strayed)
        return dataclasses.replace(group, shape=shape, ink=(red, green, blue))
    while True:
        ink = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        if math.dist(ink, BACKGROUNDS[background]) >= MIN_COLOUR_CONTRAST:
            nearest = min(COLOURS, key=lambda name: math.dist(ink, COLOURS[name]))
            return dataclasses.replace(group, shape=shape, colour=nearest, ink=ink, named=False)


def arrange(scene: Scene, rng: random.Random, width: int = 128, height: int = 128) -> list[PlacedObject]:
    """Lay the scene's objects out on the grid, each group in its formation, wholly on its side of the other.

    A single object lies in one of the cells around the middle; any other scene has one place in a picture of one size.
    With a choice of places a small model paints two of them at once: four in a row where three may begin at either end.

    Args: width, height = the picture's size, multiples of CELL; one of 96 x 96 holds every scene.
    """
    room = (width // CELL, height // CELL)
    axis = 0 if scene.relation in ("left", "right") else 1  # along which the groups follow each other
    order = [1, 0] if scene.relation in ("right", "below") else list(range(len(scene.groups)))
    boxes = {index: FORMATIONS[scene.groups[index].count] for index in order}
    slack = room[axis] - sum(along for along, _ in boxes.values())
    if slack < 0 or any(across > room[1 - axis] for _, across in boxes.values()):
        raise ValueError(f"scene does not fit {width} x {height}: {scene}")
    alone = len(order) == 1 and scene.groups[0].count == 1
    ahead, aside = (rng.randint(0, 1), rng.randint(0, 1)) if alone else (0, 0)
    start, gap = ((slack + ahead) // 2, 0) if len(order) == 1 else (0, slack)
    items = []
    for index in order:
        along, across = boxes[index]
        side = SIZES[scene.groups[index].size]
        inset = (CELL - side) // 2
        first = (room[1 - axis] - across + aside) // 2
        for i, j in itertools.product(range(along), range(across)):
            cell = (start + i, first + j) if axis == 0 else (first + j, start + i)
            items.append(PlacedObject(index, CELL * cell[0] + inset, CELL * cell[1] + inset, side))
        start += along + gap
    return sorted(items, key=lambda item: item.group)


@functools.cache
def shape_mask(shape: str, side: int) -> np.ndarray:
    """Anti-aliased coverage of a shape that fills a box of `side` pixels: [side, side] float32 in [0, 1]."""
    fine = 8
    axis = (np.arange(side * fine) + 0.5) / (side * fine) * 2 - 1
    if shape not in OUTLINES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(OUTLINES)}")
    inside = OUTLINES[shape](axis[None, :], axis[:, None])
    return inside.reshape(side, fine, side, fine).mean((1, 3), dtype=np.float32)


def _inside_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A five-pointed star with one tip up and an inner radius of 0.45."""
    angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)  # distance from the nearest tip, 0 .. 36 degrees
    px, py = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    ix, iy = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    return (px - 1) * iy - py * (ix - 1) <= 0


def _box(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y))


# Shape -> whether it covers a point; x goes right and y down, both from -1 to 1.
OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: x**2 + y**2 <= 0.98,
    "square": lambda x, y: _box(x, y) <= 0.9,
    "triangle": lambda x, y: (abs(x) <= (y + 0.95) / 1.9) & (y <= 0.95),
    "star": lambda x, y: _inside_star(x, y + 0.05),
    "diamond": lambda x, y: abs(x) / 0.7 + abs(y) <= 0.98,
    "hexagon": lambda x, y: (abs(y) <= 0.8) & (abs(x) + abs(y) / 3**0.5 <= 0.95),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.3) & (_box(x, y) <= 0.9),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.75) <= 0.2,
    "bar": lambda x, y: _box(x, y / 0.37) <= 0.95,
    "pillar": lambda x, y: _box(x / 0.37, y) <= 0.95,
    "moon": lambda x, y: (np.hypot(x, y) <= 0.95) & (np.hypot(x - 0.45, y) >= 0.75),
    "arrow": lambda x, y: np.where(x >= 0, abs(y) <= 0.9 * (1 - x), _box(x, y / 0.32) <= 0.95),
    "chevron": lambda x, y: (abs(y) <= 0.95) & (abs(x + abs(y) - 0.5) <= 0.45),
    "hourglass": lambda x, y: (abs(x) <= 0.85 * abs(y) + 0.08) & (abs(y) <= 0.9),
    "bowtie": lambda x, y: (abs(y) <= 0.85 * abs(x) + 0.08) & (abs(x) <= 0.9),
    "corner": lambda x, y: (_box(x, y) <= 0.9) & ((x < -0.25) | (y > 0.25)),
    "tee": lambda x, y: (_box(x, y) <= 0.9) & ((abs(x) < 0.3) | (y < -0.3)),
}


def _sprite(group: Group, side: int, background: str) -> np.ndarray:
    cover = shape_mask(group.shape, side)[..., None]
    ink, paper = (
        np.array(rgb, np.float32) / 255 for rgb in (group.ink or COLOURS[group.colour], BACKGROUNDS[background])
    )
    return paper + cover * (ink - paper)


def draw_image(
    scene: Scene, items: list[PlacedObject], width: int = 128, height: int = 128, out: np.ndarray | None = None
) -> np.ndarray:
    """Draw placed objects: [height, width, 3] float32 in [0, 1], into `out` if given."""
    picture = np.empty((height, width, 3), np.float32) if out is None else out
    picture[:] = np.array(BACKGROUNDS[scene.background], np.float32) / 255
    for item in items:
        group = scene.groups[item.group]
        # Boxes never overlap and the background is flat, so a blended sprite can simply be copied.
        picture[item.y : item.y + item.side, item.x : item.x + item.side] = _sprite(group, item.side, scene.background)
    return picture


def sample_images(
    rng: random.Random, batch: int, width: int, height: int, *, varied: bool = False
) -> tuple[list[Scene], np.ndarray]:
    """Fresh scenes of what training may show, and their pictures: [batch, height, width, 3] float32 in [0, 1].

    Args: varied = with inks and shapes beside the named ones (see `vary`).
    """
    pictures = np.empty((batch, height, width, 3), np.float32)
    scenes = []
    for picture in pictures:
        scene = augment(sample_scene(rng), rng) if varied else sample_scene(rng)
        draw_image(scene, arrange(scene, rng, width, height), width, height, out=picture)
        scenes.append(scene)
    return scenes, pictures
