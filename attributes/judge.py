"""Judge an image of the small model's world: its objects, their colours, shapes, counts and positions.

Classical image analysis. An object is a connected region that differs from the background; its colour is the nearest
named one; its shape is the template with the smallest squared difference.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .world import BACKGROUNDS, COLOURS, SHAPES, Scene, shape_mask

COLUMNS = ("colour", "shape", "count", "spatial", "all")
COLOUR_RGB = np.array(list(COLOURS.values()), np.float32) / 255
BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), np.float32) / 255
MIN_CONTRAST = 0.19  # RGB distance of an object from the background: half of the smallest one (purple on gray)
MIN_AREA = 24  # pixels; the smallest star has about 75
BLUR = 0.7  # pixels; about that of a decoded image
MAX_MISFIT = 0.3  # squared difference from the template by area; above it the shape is unknown
MIN_OFFSET = 6.0  # pixels between two groups' centres along the relation's axis


@dataclass(frozen=True)
class DetectedObject:
    """One detected object; centre in pixels from the top left; area in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    area: int


def find_objects(image: np.ndarray) -> tuple[str, list[DetectedObject]]:
    """Detect the background and the objects.

    Args: image [H, W, 3], float in [0, 1].
    Returns: name of the background; objects, a shape that fits no template is "unknown".
    """
    background = _background(image)
    distance = np.linalg.norm(image - BACKGROUND_RGB[background], axis=-1)
    labels, _ = ndimage.label(distance > MIN_CONTRAST)
    found = []
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        patch, inside = image[window], labels[window] == index
        if inside.sum() < MIN_AREA:
            continue
        for colour, part in _by_colour(patch, inside):
            contrast = COLOUR_RGB[colour] - BACKGROUND_RGB[background]
            coverage = ((patch - BACKGROUND_RGB[background]) @ contrast / (contrast @ contrast)).clip(0, 1)
            # The edge is at half coverage; MIN_CONTRAST is lower, so that soft edges are in the region.
            part = part & (coverage > 0.5)
            if part.sum() >= MIN_AREA:
                found.append(_describe(coverage, part, list(COLOURS)[colour], window))
    return list(BACKGROUNDS)[background], found


def _background(image: np.ndarray) -> int:
    edge = np.concatenate((image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[:, :2].reshape(-1, 3)))
    return int(np.linalg.norm(BACKGROUND_RGB - np.median(edge, axis=0), axis=-1).argmin())


def _by_colour(patch: np.ndarray, inside: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The colours in one connected region, with their masks. Edges do not vote: their blends resemble other colours."""
    core = ndimage.binary_erosion(inside)
    if not core.any():
        core = inside
    nearest = np.linalg.norm(patch[:, :, None] - COLOUR_RGB, axis=-1).argmin(-1)
    votes = np.bincount(nearest[core], minlength=len(COLOUR_RGB))
    main = [int(colour) for colour in np.flatnonzero(votes >= max(MIN_AREA / 2, 0.2 * core.sum()))]
    if len(main) < 2:
        return [(int(votes.argmax()), inside)]
    choice = np.array(main)[np.linalg.norm(patch[:, :, None] - COLOUR_RGB[main], axis=-1).argmin(-1)]
    parts = []
    for colour in main:
        pieces, number = ndimage.label(inside & (choice == colour))
        parts += [(colour, pieces == piece) for piece in range(1, number + 1)]
    return parts


def _describe(coverage: np.ndarray, part: np.ndarray, colour: str, window: tuple[slice, slice]) -> DetectedObject:
    y, x = ndimage.center_of_mass(part)
    shape = classify(coverage * ndimage.binary_dilation(part, iterations=2))
    return DetectedObject(colour, shape, float(x + window[1].start), float(y + window[0].start), int(part.sum()))


def classify(coverage: np.ndarray) -> str:
    """Name the shape of a coverage map.

    Each shape, slightly blurred, is compared at sizes around that of equal mass, with aligned centres of mass; the
    smallest squared difference wins.
    Args: coverage [h, w] in [0, 1].
    Returns: a name of SHAPES, "unknown" if none fits.
    """
    mass = coverage.sum()
    y, x = ndimage.center_of_mass(coverage)
    errors = {}
    for shape in SHAPES:
        around = round(float(np.sqrt(mass / _fill_factor(shape))))
        errors[shape] = min(_misfit(coverage, shape, side, y, x) for side in range(max(6, around - 2), around + 3))
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] <= MAX_MISFIT else "unknown"


def _misfit(coverage: np.ndarray, shape: str, side: int, y: float, x: float) -> float:
    template, (cy, cx) = _template(shape, side)
    best = np.inf
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        top, left = int(np.floor(y - cy)) + dy, int(np.floor(x - cx)) + dx
        height = max(top + len(template), len(coverage)) - min(top, 0)
        width = max(left + len(template), coverage.shape[1]) - min(left, 0)
        canvas = np.zeros((height, width), np.float32)
        canvas[-min(top, 0) :, -min(left, 0) :][: len(coverage), : coverage.shape[1]] = coverage
        canvas[max(top, 0) :, max(left, 0) :][: len(template), : len(template)] -= template
        best = min(best, float(np.square(canvas).sum()))
    return best / float(coverage.sum())


@functools.cache
def _template(shape: str, side: int) -> tuple[np.ndarray, tuple[float, float]]:
    soft = ndimage.gaussian_filter(np.pad(shape_mask(shape, side), 2), BLUR)
    return soft, ndimage.center_of_mass(soft)


@functools.cache
def _fill_factor(shape: str) -> float:
    """Fraction of its box that a shape covers."""
    return float(shape_mask(shape, 64).mean())


def score(image: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Compare an image with a scene.

    Args: image [H, W, 3], float in [0, 1].
    Returns: True or False by column. colour: the scene's colours and no others. shape: every object of a group's
        colour has its shape. count: the right number of objects of each colour, and no others. spatial: the groups'
        centres have the scene's relation; absent for a scene of one group. all: all of these.
    """
    _, found = find_objects(image)
    by_colour = {group.colour: [item for item in found if item.colour == group.colour] for group in scene.groups}
    out = {
        "colour": {item.colour for item in found} == set(by_colour),
        "shape": all(
            by_colour[group.colour] and all(item.shape == group.shape for item in by_colour[group.colour])
            for group in scene.groups
        ),
        "count": len(found) == sum(group.count for group in scene.groups)
        and all(len(by_colour[group.colour]) == group.count for group in scene.groups),
    }
    if scene.relation:
        out["spatial"] = _has_relation(scene, by_colour)
    out["all"] = all(out.values())
    return out


def _has_relation(scene: Scene, by_colour: dict[str, list[DetectedObject]]) -> bool:
    first, second = (by_colour[group.colour] for group in scene.groups)
    if not first or not second:
        return False
    axis = "x" if scene.relation in ("left", "right") else "y"
    offset = np.mean([getattr(item, axis) for item in first]) - np.mean([getattr(item, axis) for item in second])
    return bool(offset < -MIN_OFFSET if scene.relation in ("left", "above") else offset > MIN_OFFSET)


def summarise(scores: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
    """Percent right by column, with Wilson's 95% interval (low, high) and the number of images n."""
    out = {}
    for column in COLUMNS:
        values = [entry[column] for entry in scores if column in entry]
        if values:
            low, high = wilson(sum(values), len(values))
            percent = 100 * sum(values) / len(values)
            out[column] = {"percent": percent, "low": 100 * low, "high": 100 * high, "n": len(values)}
    return out


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a fraction.

    Args: right of total > 0; z, standard normal quantile: 1.96 for 95%.
    Returns: (low, high) in [0, 1].
    Source: Wilson 1927.
    """
    fraction, spread = right / total, z * z / total
    middle = (fraction + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(fraction * (1 - fraction) / total + spread / (4 * total))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
