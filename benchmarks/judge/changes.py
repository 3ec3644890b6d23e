"""Changes that put a fault of docs/judge.md into a right drawing."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage

from attributes.world import BACKGROUNDS, COLOURS, SHAPES, Group, Scene

from .images import (
    COLOUR_JITTER,
    DoesNotFit,
    Drawing,
    Item,
    Look,
    Rgb,
    are_apart,
    coverage,
    flat,
    jittered,
    make_item,
    move,
    polar,
    rounded,
    scaled,
    turned,
)

Change = Callable[[Scene, Drawing, random.Random], None]


def require(condition: bool) -> None:
    """Raise DoesNotFit unless the fault applies."""
    if not condition:
        raise DoesNotFit


def distance(rgb: Rgb, others: list[Rgb]) -> float:
    """Smallest RGB distance of a colour from others."""
    return min(math.dist(rgb, other) for other in others)


def unnamed_colour(rng: random.Random, others: list[Rgb], least: float = 60) -> Rgb:
    """A random colour at a distance from all others."""
    while True:
        rgb = tuple(rng.uniform(0, 255) for _ in range(3))
        if distance(rgb, others) >= least:
            return rgb


def other_colour(rng: random.Random, scene: Scene) -> str:
    """A named colour that the scene does not have."""
    return rng.choice([name for name in COLOURS if name not in {group.colour for group in scene.groups}])


# Backgrounds


def named_background(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    other = rng.choice([name for name in BACKGROUNDS if name != scene.background])
    drawing.ground = flat(jittered(BACKGROUNDS[other], 8, rng), drawing.width, drawing.height)


def background_colour(drawing: Drawing, rng: random.Random) -> Rgb:
    objects = [item.rgb for item in drawing.items]
    while True:
        rgb = unnamed_colour(rng, list(BACKGROUNDS.values()))
        if distance(rgb, objects) >= 80:
            return rgb


def unnamed_background(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    drawing.ground = flat(background_colour(drawing, rng), drawing.width, drawing.height)


def gradient(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    start = np.array(BACKGROUNDS[scene.background], np.float64)
    while True:
        end = np.array([rng.uniform(0, 255) for _ in range(3)])
        if np.linalg.norm(end - start) >= 90:
            break
    x, y = np.arange(drawing.width) / (drawing.width - 1), np.arange(drawing.height) / (drawing.height - 1)
    ramp = np.broadcast_to(x[None, :] if rng.random() < 0.5 else y[:, None], (drawing.height, drawing.width))
    drawing.ground = start + ramp[..., None] * (end - start)


def two_backgrounds(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    angle = rng.uniform(0, 2 * math.pi)
    x, y = np.arange(drawing.width) - drawing.width / 2, np.arange(drawing.height) - drawing.height / 2
    reach = 0.25 * min(drawing.width, drawing.height) * rng.uniform(-1, 1)
    beyond = math.cos(angle) * x[None, :] + math.sin(angle) * y[:, None] > reach
    names = [rgb for name, rgb in BACKGROUNDS.items() if name != scene.background]
    drawing.ground[beyond] = rng.choice([*names, background_colour(drawing, rng)])


def blotch(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    x, y = np.arange(drawing.width)[None, :], np.arange(drawing.height)[:, None]
    x0, y0 = rng.uniform(0.2, 0.8) * drawing.width, rng.uniform(0.2, 0.8) * drawing.height
    far = np.hypot((x - x0) / drawing.width, (y - y0) / drawing.height)
    weight = np.exp(-((far / rng.uniform(0.3, 0.4)) ** 4))[..., None]
    drawing.ground += weight * (np.array(background_colour(drawing, rng)) - drawing.ground)


def noise(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    drawing.noise = rng.uniform(40, 60)


# Shapes


def heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack((x, y), 1)


def spade() -> np.ndarray:
    leaf = heart() * np.array((1.0, -1.0))
    leaf = leaf[np.argsort(np.mod(np.arctan2(leaf[:, 0], -(leaf[:, 1] + 2)), 2 * np.pi))]
    low = leaf[:, 1].max()
    stem = np.array([(2.0, low - 6), (6.0, low + 7), (-6.0, low + 7), (-2.0, low - 6)])
    return np.concatenate((leaf[: len(leaf) // 2], stem, leaf[len(leaf) // 2 :]))


def drop() -> np.ndarray:
    angles = np.radians(np.linspace(-30, 210, 40))
    return np.concatenate((np.array([(0.0, -2.0)]), np.stack((np.cos(angles), np.sin(angles)), 1)))


def crescent() -> np.ndarray:
    outer, inner = np.radians(np.linspace(50, 310, 50)), np.radians(np.linspace(290, 70, 40))
    bite = np.stack((0.45 + 0.85 * np.cos(inner), 0.85 * np.sin(inner)), 1)
    return np.concatenate((np.stack((np.cos(outer), np.sin(outer)), 1), bite))


UNKNOWN_SHAPES: dict[str, Callable[[], np.ndarray]] = {
    "heart": heart,
    "spade": spade,
    "diamond": lambda: polar([1.0, 0.68] * 2),
    "pentagon": lambda: polar([1.0] * 5),
    "hexagon": lambda: polar([1.0] * 6, 0.0),
    "cross": lambda: np.array(
        [
            *((-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1)),
            (-1, -1),
        ],
        np.float64,
    ),
    "ring": lambda: polar([1.0] * 72),
    "crescent": crescent,
    "drop": drop,
    "trapezoid": lambda: np.array([(-0.5, -0.8), (0.5, -0.8), (1.0, 0.8), (-1.0, 0.8)]),
}


def chosen(scene: Scene, drawing: Drawing, rng: random.Random) -> list[Item]:
    """One object, or all of its group."""
    one = rng.choice(drawing.items)
    return [one] if rng.random() < 0.5 else [item for item in drawing.items if item.group == one.group]


def unknown_shape(name: str) -> Change:
    def change(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
        for item in chosen(scene, drawing, rng):
            points = UNKNOWN_SHAPES[name]()
            low, high = points.min(0), points.max(0)
            ratio = float((high - low)[0] / (high - low)[1]) * math.exp(rng.uniform(-0.08, 0.08))
            item.outline = turned(scaled(points, item.side, ratio), rng.uniform(-10, 10))
            if name == "ring":
                item.erased.append(item.outline * rng.uniform(0.45, 0.6))

    return change


def reshape(item: Item, shape: str, rng: random.Random) -> None:
    item.outline = turned(Look.sample(shape, rng).outline(shape, item.side), rng.uniform(-10, 10))


def mixed_shapes(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    require(scene.groups[item.group].count >= 2)
    reshape(item, rng.choice([shape for shape in SHAPES if shape != item.shape]), rng)


def half_plane(point: np.ndarray, degrees: float) -> np.ndarray:
    """A large square with one side through a point; 0 degrees: everything to its right, 90: below."""
    return turned(np.array([(0, -200), (400, -200), (400, 200), (0, 200)], np.float64), degrees) + point


def half(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    for item in chosen(scene, drawing, rng):
        # The upper half of a triangle is a triangle.
        angle = rng.choice((0.0, 180.0, -90.0)) if item.shape == "triangle" else rng.uniform(0, 360)
        item.erased.append(half_plane(middle(drawing, item), angle))


def middle(drawing: Drawing, item: Item) -> np.ndarray:
    """Centre of mass [x, y] relative to the object's position."""
    y, x = ndimage.center_of_mass(coverage(drawing, item))
    return np.array((x + 0.5 - item.x, y + 0.5 - item.y))


def area(drawing: Drawing, item: Item) -> float:
    return float(coverage(drawing, item).sum())


def notch(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    whole = area(drawing, item)
    for _ in range(100):
        point = item.outline[rng.randrange(len(item.outline))] * rng.uniform(0.5, 1)
        item.erased = [polar([rng.uniform(0.2, 0.45) * item.side] * 24) + point]
        if 0.17 <= 1 - area(drawing, item) / whole <= 0.35:
            left = coverage(drawing, item)
            require(ndimage.label(left > 0.3)[1] == 1)
            # The triangle without its lower part is a triangle.
            require(item.shape != "triangle" or point[1] < 0.2 * item.side or abs(point[0]) > 0.2 * item.side)
            return
    raise DoesNotFit


def hole(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    whole, point = area(drawing, item), middle(drawing, item)
    radius = max(3.0, math.sqrt(rng.uniform(0.15, 0.25) * whole / math.pi))
    item.erased = [polar([radius] * 24) + point]


def hollow(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    for item in chosen(scene, drawing, rng):
        point = middle(drawing, item)
        item.erased = [(item.outline - point) * rng.uniform(0.68, 0.76) + point]


def stretched(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    for item in chosen(scene, drawing, rng):
        stretch = rng.uniform(1.5, 1.8) if item.shape != "triangle" else rng.uniform(2.0, 2.5)
        look = replace(Look.sample(item.shape, rng), ratio=stretch if rng.random() < 0.5 else 1 / stretch)
        item.outline = turned(look.outline(item.shape, item.side), rng.uniform(-5, 5))


def skewed(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    items = [item for item in chosen(scene, drawing, rng) if item.shape == "square"]
    require(bool(items))
    shear = math.tan(math.radians(rng.uniform(22, 30))) * rng.choice((-1, 1))
    for item in items:
        item.outline = item.outline @ (np.array([[1, 0], [shear, 1]]) if rng.random() < 0.5 else [[1, shear], [0, 1]])


def at_the_edge(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    whole = area(drawing, item)
    for _ in range(60):
        side = rng.randrange(3 if item.shape == "triangle" else 4)
        if side < 2:
            item.x = rng.uniform(-0.3, 0.3) * item.side + (0, drawing.width)[side]
            item.y = rng.uniform(item.side, drawing.height - item.side)
        else:
            # A triangle is cut at its top: without its lower part it is a triangle.
            item.y = rng.uniform(-0.3, 0.3) * item.side + (0, drawing.height)[side - 2]
            item.x = rng.uniform(item.side, drawing.width - item.side)
        others = [other for other in drawing.items if other is not item]
        if 0.4 <= area(drawing, item) / whole <= 0.65 and all(are_apart(item, other) for other in others):
            return
    raise DoesNotFit


def blur(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    drawing.blur = rng.uniform(0.17, 0.22) * max(item.side for item in drawing.items)


def unequal_sizes(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    require(scene.groups[item.group].count >= 2 and item.side >= 24)
    item.outline = item.outline * rng.uniform(0.42, 0.46)


def overlapped(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    require(len(scene.groups) == 2)
    push_together(drawing, *pair(drawing, rng, same=False), rng)


def merged(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    require(any(group.count > 1 for group in scene.groups))
    push_together(drawing, *pair(drawing, rng, same=True), rng)


def pair(drawing: Drawing, rng: random.Random, same: bool) -> tuple[Item, Item]:
    """Two objects of one group or of two; the second is drawn last."""
    pairs = [(a, b) for a in drawing.items for b in drawing.items if a is not b and (a.group == b.group) == same]
    below, above = rng.choice(pairs)
    drawing.items.sort(key=lambda item: item is above)
    return below, above


def push_together(drawing: Drawing, below: Item, above: Item, rng: random.Random) -> None:
    lone = area(drawing, below), area(drawing, above)
    for _ in range(100):
        angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 0.7) * (below.side + above.side) / 2
        above.x, above.y = below.x + far * math.cos(angle), below.y + far * math.sin(angle)
        common = float(np.minimum(coverage(drawing, below), coverage(drawing, above)).sum()) / min(lone)
        others = [item for item in drawing.items if item is not below and item is not above]
        left, top, right, bottom = above.box()
        inside = left >= 2 and top >= 2 and right <= drawing.width - 2 and bottom <= drawing.height - 2
        if 0.2 <= common <= 0.5 and inside and all(are_apart(above, item) for item in others):
            return
    raise DoesNotFit


# Counts


def add_piece(drawing: Drawing, outline: np.ndarray, rgb: Rgb, rng: random.Random) -> None:
    item = Item(-1, "piece", 0.0, 0.0, 6.0, rgb, outline)
    move(item, drawing, rng)
    drawing.items.append(item)


def named_rgb(scene: Scene, drawing: Drawing, rng: random.Random) -> Rgb:
    """A named colour, often one of the scene's."""
    names = [group.colour for group in scene.groups] if rng.random() < 0.5 else list(COLOURS)
    return jittered(COLOURS[rng.choice(names)], COLOUR_JITTER, rng)


def blob(rng: random.Random) -> np.ndarray:
    radii = [rng.uniform(0.8, 1.2) for _ in range(7)]
    return rounded(polar(radii) * rng.uniform(2.7, 4.5), 1.0)


def stray_piece(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    add_piece(drawing, blob(rng), named_rgb(scene, drawing, rng), rng)


def unnamed_piece(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    taken = [*COLOURS.values(), tuple(drawing.ground[0, 0])]
    add_piece(drawing, blob(rng), unnamed_colour(rng, taken), rng)


def stray_line(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    length, width = rng.uniform(25, 45), rng.uniform(2, 3)
    bar = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.array((length, width)) / 2
    add_piece(drawing, turned(bar, rng.uniform(0, 180)), named_rgb(scene, drawing, rng), rng)


def extra_group(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    group, side = Group(1, other_colour(rng, scene), rng.choice(SHAPES)), rng.uniform(20, 26)
    for _ in range(rng.randint(1, 2)):
        rgb = jittered(COLOURS[group.colour], COLOUR_JITTER, rng)
        item = make_item(2, group, side, Look.sample(group.shape, rng), rgb, rng)
        move(item, drawing, rng)
        drawing.items.append(item)


# Colours


def one_wrong_colour(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    require(scene.groups[item.group].count >= 2)
    item.rgb = jittered(COLOURS[other_colour(rng, scene)], COLOUR_JITTER, rng)


def exchanged_colour(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    require(len(scene.groups) == 2)
    item.rgb = jittered(COLOURS[scene.groups[1 - item.group].colour], COLOUR_JITTER, rng)


def between_colours(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    group = rng.randrange(len(scene.groups))
    first, second = COLOURS[scene.groups[group].colour], COLOURS[rng.choice(list(COLOURS))]
    t = rng.uniform(0.42, 0.58)
    rgb = tuple(a + t * (b - a) for a, b in zip(first, second, strict=True))
    require(distance(rgb, list(COLOURS.values())) >= 40 and distance(rgb, [tuple(drawing.ground[0, 0])]) >= 60)
    for item in drawing.items:
        item.rgb = rgb if item.group == group else item.rgb


def two_colours(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    item = rng.choice(drawing.items)
    other = COLOURS[rng.choice(list(COLOURS))]
    require(math.dist(other, item.rgb) >= 100)
    item.second = (other, half_plane(middle(drawing, item), rng.uniform(0, 360)))


def faint(scene: Scene, drawing: Drawing, rng: random.Random) -> None:
    group, contrast = rng.randrange(len(scene.groups)), rng.uniform(0.25, 0.33)
    ground = drawing.ground[0, 0]
    for item in drawing.items:
        if item.group == group:
            item.rgb = tuple(ground + contrast * (np.array(item.rgb) - ground))
            require(math.dist(item.rgb, ground) >= 40 and distance(item.rgb, list(COLOURS.values())) >= 60)
