"""The data distribution of the small model: images of a few flat shapes.

A `Scene` is the meaning of an image: captions name it, the judge checks it. `arrange` gives its objects positions,
`draw_image` draws them. The colour-shape pairs and colour-shape-relation triples of `HELD_OUT_*` never appear in
training, so prompts with them measure composition.
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
# Shapes and colours in training images that no caption names. With eight colours and four shapes only, a model learns
# that stars are never yellow and draws a yellow star orange; with many other colours and shapes it does not.
UNNAMED_SHAPES = (
    *("diamond", "hexagon", "cross", "ring", "bar", "pillar", "moon", "arrow", "chevron", "hourglass", "bowtie"),
    *("corner", "tee"),
)
UNNAMED_SHAPE_PROBABILITY, UNNAMED_COLOUR_PROBABILITY = 0.3, 0.35
COLOUR_JITTER = 8  # of 255: largest change of a named colour in each channel; the two closest colours are 90 apart
MIN_COLOUR_CONTRAST = 70  # of 255: smallest RGB distance of an unnamed colour from the background
# Pixels of a grid cell; each object is in a cell of its own. A cell is 2 x 2 image tokens, so that a shape is one of a
# few patterns of tokens instead of hundreds; a model of this size learns that in an hour.
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

# Number of objects -> cells along the relation's axis and across it: a line across it, four objects in a square.
FORMATIONS = {1: (1, 1), 2: (1, 2), 3: (1, 3), 4: (2, 2)}


@dataclass(frozen=True)
class Group:
    """Objects of one kind.

    Fields: count; colour, a name of COLOURS; shape; size, a word of SIZES; rgb, 0 to 255, None for the colour's own;
    named, False if `colour` is only the nearest name of `rgb`.
    """

    count: int
    colour: str
    shape: str
    size: str = ""
    rgb: tuple[int, int, int] | None = None
    named: bool = True


@dataclass(frozen=True)
class Scene:
    """One or two groups, the position of the first relative to the second ("" for one group), and the background.

    A caption may leave the background open: "" is any of BACKGROUNDS. Such a scene can be judged, not drawn.
    """

    groups: tuple[Group, ...]
    relation: str = ""
    background: str = "white"


@dataclass(frozen=True)
class PlacedObject:
    """One object in an image: index of its group, top-left corner and side in pixels."""

    group: int
    x: int
    y: int
    side: int


def triples(scene: Scene) -> set[tuple[str, str, str]]:
    """All (colour, shape, relation to the other group) in a scene."""
    if not scene.relation:
        return set()
    sides = (scene.relation, OPPOSITE[scene.relation])
    return {(group.colour, group.shape, side) for group, side in zip(scene.groups, sides, strict=True)}


def is_held_out(scene: Scene) -> bool:
    """True if the scene has a held-out pair or triple, which training images never have."""
    pairs = {(group.colour, group.shape) for group in scene.groups}
    return bool(pairs & HELD_OUT_PAIRS or triples(scene) & HELD_OUT_TRIPLES)


def sample_scene(rng: random.Random, *, groups: int | None = None, held_out: bool = False) -> Scene:
    """Sample a scene of at most six objects; two groups differ in colour.

    Args: groups, 1 or 2, None for either; held_out, True for a held-out scene only, False for none.
    """
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
    """Vary a scene for training: jittered colours, and in some groups a colour or a shape without a name."""
    while True:
        members = tuple(_augment_group(group, scene.background, rng) for group in scene.groups)
        varied = dataclasses.replace(scene, groups=members)
        if len({group.colour for group in members}) == len(members) and not is_held_out(varied):
            return varied


def _augment_group(group: Group, background: str, rng: random.Random) -> Group:
    shape = rng.choice(UNNAMED_SHAPES) if rng.random() < UNNAMED_SHAPE_PROBABILITY else group.shape
    if rng.random() >= UNNAMED_COLOUR_PROBABILITY:
        jittered = (value + rng.randint(-COLOUR_JITTER, COLOUR_JITTER) for value in COLOURS[group.colour])
        red, green, blue = (min(255, max(0, value)) for value in jittered)
        return dataclasses.replace(group, shape=shape, rgb=(red, green, blue))
    while True:
        rgb = (rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255))
        if math.dist(rgb, BACKGROUNDS[background]) >= MIN_COLOUR_CONTRAST:
            nearest = min(COLOURS, key=lambda name: math.dist(rgb, COLOURS[name]))
            return dataclasses.replace(group, shape=shape, colour=nearest, rgb=rgb, named=False)


def arrange(scene: Scene, rng: random.Random, width: int = 128, height: int = 128) -> list[PlacedObject]:
    """Place a scene's objects on the grid, each group in its formation and apart from the other one.

    A single object is in one of the cells around the centre; all other scenes have one layout for an image size. With
    several layouts a small model draws a mixture of them.

    Args: width, height of the image in pixels, multiples of CELL; 96 x 96 is enough for all scenes.
    Returns: the objects by group.
    Raises: ValueError if the scene does not fit.
    """
    cells = (width // CELL, height // CELL)
    axis = 0 if scene.relation in ("left", "right") else 1  # direction from one group to the other
    order = [1, 0] if scene.relation in ("right", "below") else list(range(len(scene.groups)))
    boxes = {index: FORMATIONS[scene.groups[index].count] for index in order}
    slack = cells[axis] - sum(along for along, _ in boxes.values())
    if slack < 0 or any(across > cells[1 - axis] for _, across in boxes.values()):
        raise ValueError(f"scene does not fit {width} x {height}: {scene}")
    alone = len(order) == 1 and scene.groups[0].count == 1
    shift_along, shift_across = (rng.randint(0, 1), rng.randint(0, 1)) if alone else (0, 0)
    start, gap = ((slack + shift_along) // 2, 0) if len(order) == 1 else (0, slack)
    items = []
    for index in order:
        along, across = boxes[index]
        side = SIZES[scene.groups[index].size]
        inset = (CELL - side) // 2
        first = (cells[1 - axis] - across + shift_across) // 2
        for i, j in itertools.product(range(along), range(across)):
            cell = (start + i, first + j) if axis == 0 else (first + j, start + i)
            items.append(PlacedObject(index, CELL * cell[0] + inset, CELL * cell[1] + inset, side))
        start += along + gap
    return sorted(items, key=lambda item: item.group)


@functools.cache
def shape_mask(shape: str, side: int) -> np.ndarray:
    """Anti-aliased coverage of a shape in a box.

    Args: shape, a name of OUTLINES; side of the box in pixels.
    Returns: [side, side], float32 in [0, 1].
    Raises: ValueError for an unknown shape.
    """
    fine = 8  # samples of a pixel in each direction
    axis = (np.arange(side * fine) + 0.5) / (side * fine) * 2 - 1
    if shape not in OUTLINES:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(OUTLINES)}")
    inside = OUTLINES[shape](axis[None, :], axis[:, None])
    return inside.reshape(side, fine, side, fine).mean((1, 3), dtype=np.float32)


def _inside_star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A five-pointed star, one tip up, inner radius 0.45."""
    angle = np.mod(np.arctan2(x, -y), 2 * np.pi / 5)
    angle = np.minimum(angle, 2 * np.pi / 5 - angle)  # distance from the nearest tip, 0 .. 36 degrees
    px, py = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    ix, iy = 0.45 * np.cos(np.pi / 5), 0.45 * np.sin(np.pi / 5)
    return (px - 1) * iy - py * (ix - 1) <= 0


def _box(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y))


# Shape -> True for the points that it covers; x to the right and y down, both in [-1, 1].
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
    fill, ground = (
        np.array(rgb, np.float32) / 255 for rgb in (group.rgb or COLOURS[group.colour], BACKGROUNDS[background])
    )
    return ground + cover * (fill - ground)


def draw_image(
    scene: Scene, objects: list[PlacedObject], width: int = 128, height: int = 128, out: np.ndarray | None = None
) -> np.ndarray:
    """Draw an image of placed objects.

    Args: objects, as `arrange` returns them; width and height in pixels; out, an array to draw into.
    Returns: [height, width, 3], float32 in [0, 1].
    """
    image = np.empty((height, width, 3), np.float32) if out is None else out
    image[:] = np.array(BACKGROUNDS[scene.background], np.float32) / 255
    for item in objects:
        group = scene.groups[item.group]
        # Boxes never overlap and the background is flat, so a blended sprite can be copied.
        image[item.y : item.y + item.side, item.x : item.x + item.side] = _sprite(group, item.side, scene.background)
    return image


def sample_images(
    rng: random.Random, batch: int, width: int, height: int, *, varied: bool = False
) -> tuple[list[Scene], np.ndarray]:
    """Sample scenes for training, without held-out ones, and draw them.

    Args: batch, their number; width and height in pixels; varied, True to `augment` them.
    Returns: scenes; images [batch, height, width, 3], float32 in [0, 1].
    """
    images = np.empty((batch, height, width, 3), np.float32)
    scenes = []
    for image in images:
        scene = augment(sample_scene(rng), rng) if varied else sample_scene(rng)
        draw_image(scene, arrange(scene, rng, width, height), width, height, out=image)
        scenes.append(scene)
    return scenes, images
