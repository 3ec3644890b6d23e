"""Images that the judge is measured on, drawn by a program of its own: nothing of the training's drawing code.

Outlines are polygons in pixels, drawn by Pillow at eight times the size and reduced. They differ from training's in
proportions, corners, rotation, sub-pixel positions, sizes, colours, and layout. `docs/judge.md` has the limits of right
images.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from attributes.world import BACKGROUNDS, COLOURS, Group, Scene, sample_scene

FINE = 8  # samples of a pixel in each direction
GAP = 3.0  # pixels, the smallest one between two objects
SIDES = {  # pixels, by size word; the last four are for faults
    "small": (18, 21),
    "": (23, 26),
    "large": (29, 34),
    "too small": (18, 20),
    "too large": (31, 34),
    "tiny": (9, 11),
    "huge": (56, 64),
}
COLOUR_JITTER, BACKGROUND_JITTER = 10, 8  # of 255, in each channel
Rgb = tuple[float, ...]  # 0 to 255
Bands = list[tuple[int, int]]  # (group, number of its objects), in order along an axis


@dataclass
class Item:
    """One drawn object.

    Fields: group, its index, -1 for none; outline [n, 2] (x, y) in pixels from the centre; erased, outlines of missing
    parts; second, another colour and the outline of the part that has it.
    """

    group: int
    shape: str
    x: float
    y: float
    side: float
    rgb: Rgb
    outline: np.ndarray
    erased: list[np.ndarray] = field(default_factory=list)
    second: tuple[Rgb, np.ndarray] | None = None

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels."""
        (left, top), (right, bottom) = self.outline.min(0), self.outline.max(0)
        return self.x + left, self.y + top, self.x + right, self.y + bottom


@dataclass
class Drawing:
    """An image to draw: its size, background [height, width, 3] in 0 to 255, objects, blur in pixels, noise of 255."""

    width: int
    height: int
    ground: np.ndarray
    items: list[Item]
    blur: float
    noise: float


class DoesNotFit(Exception):
    """The scene does not fit, or the fault does not apply to it."""


def rounded(corners: np.ndarray, amount: float) -> np.ndarray:
    """A polygon with its corners replaced by quadratic curves that begin `amount` pixels from them."""
    if amount <= 0:
        return corners
    out = []
    for before, corner, after in zip(np.roll(corners, 1, 0), corners, np.roll(corners, -1, 0), strict=True):
        first, last = (
            corner + (other - corner) * min(0.45, amount / math.dist(other, corner)) for other in (before, after)
        )
        out += [(1 - t) ** 2 * first + 2 * t * (1 - t) * corner + t * t * last for t in np.linspace(0, 1, 5)]
    return np.array(out)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points rotated about the origin."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return points @ np.array([[c, s], [-s, c]])


def polar(radii: list[float], start: float = -90.0) -> np.ndarray:
    """Corners at equal angles with these radii, the first one up."""
    angles = np.radians(start + np.arange(len(radii)) * 360 / len(radii))
    return np.array(radii)[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)


def scaled(points: np.ndarray, side: float, ratio: float = 1.0) -> np.ndarray:
    """Points stretched to `ratio` of width to height, the longer of which is `side`, about the box's centre."""
    low, high = points.min(0), points.max(0)
    box = np.array((side, side / ratio) if ratio > 1 else (side * ratio, side))
    return (points - (low + high) / 2) / (high - low) * box


@dataclass(frozen=True)
class Look:
    """How a group's shape is drawn: ratio of width to height, corners' rounding in sides, a star's inner radius."""

    ratio: float
    rounding: float
    inner: float

    @classmethod
    def sample(cls, shape: str, rng: random.Random) -> Look:
        ratio = 1 / rng.uniform(0.8, 1.1) if shape == "triangle" else math.exp(rng.uniform(-0.12, 0.12))
        return cls(ratio, rng.choice((0.0, 0.0, rng.uniform(0, 0.1))), rng.uniform(0.38, 0.52))

    def outline(self, shape: str, side: float) -> np.ndarray:
        """Corners [n, 2] in pixels from the centre of the box."""
        if shape == "circle":
            return scaled(polar([1.0] * 72), side, self.ratio)
        corners = {
            "square": polar([1.0] * 4, 45.0),
            "triangle": np.array([(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]),
            "star": polar([1.0, self.inner] * 5),
        }[shape]
        return rounded(scaled(corners, side, self.ratio), self.rounding * side)


def _paint(size: tuple[int, int], parts: list[tuple[np.ndarray, int]]) -> np.ndarray:
    """Coverage [height, width] of outlines in image coordinates, painted in order with 1 or 0."""
    canvas = Image.new("L", (size[0] * FINE, size[1] * FINE))
    pen = ImageDraw.Draw(canvas)
    for points, value in parts:
        pen.polygon([(float(x) * FINE - 0.5, float(y) * FINE - 0.5) for x, y in points], fill=255 * value)
    return np.asarray(canvas.reduce(FINE), np.float64) / 255


def coverage(drawing: Drawing, item: Item) -> np.ndarray:
    """Coverage of one object [height, width] in 0 to 1."""
    centre = np.array((item.x, item.y))
    parts = [(item.outline + centre, 1)] + [(points + centre, 0) for points in item.erased]
    return _paint((drawing.width, drawing.height), parts)


def draw(drawing: Drawing, rng: random.Random) -> np.ndarray:
    """The image [height, width, 3], float32 in 0 to 1; `rng` seeds its noise."""
    image = drawing.ground.astype(np.float64)
    for item in drawing.items:
        mask = coverage(drawing, item)[..., None]
        colour = np.broadcast_to(np.array(item.rgb, np.float64), image.shape)
        if item.second is not None:
            rgb, points = item.second
            part = _paint((drawing.width, drawing.height), [(points + np.array((item.x, item.y)), 1)])[..., None]
            colour = colour + part * (np.array(rgb, np.float64) - colour)
        image = image + mask * (colour - image)
    image = ndimage.gaussian_filter(image, (drawing.blur, drawing.blur, 0))
    image = image + np.random.default_rng(rng.getrandbits(32)).normal(0, drawing.noise, image.shape)
    return (image / 255).clip(0, 1).astype(np.float32)


def jittered(rgb: Rgb, amount: int, rng: random.Random) -> Rgb:
    """A colour with each channel changed by at most `amount`."""
    return tuple(min(255.0, max(0.0, value + rng.uniform(-amount, amount))) for value in rgb)


def flat(rgb: Rgb, width: int, height: int) -> np.ndarray:
    """A background of one colour."""
    return np.broadcast_to(np.array(rgb, np.float64), (height, width, 3)).copy()


def are_apart(a: Item, b: Item, gap: float = GAP) -> bool:
    """True if the boxes of two objects have a gap."""
    (left, top, right, bottom), other = a.box(), b.box()
    return left - other[2] >= gap or other[0] - right >= gap or top - other[3] >= gap or other[1] - bottom >= gap


def is_free(item: Item, drawing: Drawing, gap: float = GAP) -> bool:
    """True if an object is inside the image and apart from all others."""
    left, top, right, bottom = item.box()
    inside = left >= 2 and top >= 2 and right <= drawing.width - 2 and bottom <= drawing.height - 2
    return inside and all(are_apart(item, other, gap) for other in drawing.items if other is not item)


def move(item: Item, drawing: Drawing, rng: random.Random, area: tuple[float, float, float, float] | None = None):
    """Move an object to a free position with its box in an area (left, top, right, bottom), or in the image.

    Raises: DoesNotFit if none is found.
    """
    left, top, right, bottom = area or (2, 2, drawing.width - 2, drawing.height - 2)
    (low_x, low_y), (high_x, high_y) = item.outline.min(0), item.outline.max(0)
    if right - left < high_x - low_x or bottom - top < high_y - low_y:
        raise DoesNotFit
    for _ in range(60):
        item.x, item.y = rng.uniform(left - low_x, right - high_x), rng.uniform(top - low_y, bottom - high_y)
        if is_free(item, drawing):
            return
    raise DoesNotFit


def make_item(index: int, group: Group, side: float, look: Look, rgb: Rgb, rng: random.Random) -> Item:
    """An object of a group at no position yet."""
    outline = turned(look.outline(group.shape, side), 0 if group.shape == "circle" else rng.uniform(-10, 10))
    return Item(index, group.shape, 0.0, 0.0, side, rgb, outline)


def lay_out(drawing: Drawing, members: list[list[Item]], bands: Bands, axis: int, rng: random.Random) -> None:
    """Place objects at random in bands along an axis (0: x, 1: y), with gaps between the bands.

    Raises: DoesNotFit if there is no room.
    """
    size = (drawing.width, drawing.height)
    lengths = []
    for group, number in bands:
        largest = max(float(np.ptp(item.outline, axis=0).max()) for item in members[group]) + GAP
        across = max(1, int((size[1 - axis] - 4) // (largest * 1.25)))
        lengths.append(largest * math.ceil(number / across))
    spare = size[axis] - 4 - sum(lengths)
    if spare < 0:
        raise DoesNotFit
    weights = [rng.uniform(0.2, 1) for _ in bands]
    start, left = 2.0, [list(items) for items in members]
    for (group, number), length, weight in zip(bands, lengths, weights, strict=True):
        end = start + length + spare * weight / sum(weights)
        area = (
            (start, 2.0, end - GAP, drawing.height - 2.0) if axis == 0 else (2.0, start, drawing.width - 2.0, end - GAP)
        )
        for _ in range(number):
            item = left[group].pop()
            move(item, drawing, rng, area)
            drawing.items.append(item)
        start = end


def centre(drawing: Drawing, group: int) -> np.ndarray:
    """Mean position [x, y] of a group's objects."""
    return np.mean([(item.x, item.y) for item in drawing.items if item.group == group], axis=0)


def sample_drawing(
    scene: Scene,
    rng: random.Random,
    *,
    bands: Bands | None = None,
    axis: int | None = None,
    sizes: tuple[str, ...] | None = None,
) -> Drawing:
    """A right drawing of a scene.

    Args: bands and axis, another arrangement than the scene's; sizes, the keys of SIDES drawn for the groups.
    Raises: DoesNotFit if the sampled image has no room.
    """
    width, height = 8 * rng.randint(12, 20), 8 * rng.randint(12, 20)
    ground = flat(jittered(BACKGROUNDS[scene.background], BACKGROUND_JITTER, rng), width, height)
    drawing = Drawing(width, height, ground, [], rng.uniform(0.3, 0.9), rng.uniform(0, 5))
    members = []
    for index, group in enumerate(scene.groups):
        side, look = rng.uniform(*SIDES[sizes[index] if sizes else group.size]), Look.sample(group.shape, rng)
        rgb = jittered(COLOURS[group.colour], COLOUR_JITTER, rng)
        made = [make_item(index, group, side * rng.uniform(0.96, 1.04), look, rgb, rng) for _ in range(group.count)]
        members.append(made)
    along = 0 if scene.relation in ("left", "right") else 1
    if bands is None:
        bands = [(index, group.count) for index, group in enumerate(scene.groups)]
        bands = bands[::-1] if scene.relation in ("right", "below") else bands
    lay_out(drawing, members, bands, along if axis is None else axis, rng)
    if len(bands) == 2 and axis is None:
        offset = abs(centre(drawing, 0) - centre(drawing, 1))
        if offset[along] < 0.5 * offset[1 - along]:
            raise DoesNotFit
    return drawing


def right_image(rng: random.Random) -> tuple[Scene, np.ndarray]:
    """A scene and a right image of it."""
    while True:
        scene = sample_scene(rng, held_out=rng.random() < 0.5)
        try:
            return scene, draw(sample_drawing(scene, rng), rng)
        except DoesNotFit:
            continue
