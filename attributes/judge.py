"""Read a picture of the small model's world back: objects, their colours and shapes, counts and sides.

Classical image analysis throughout. An object is a connected patch that differs from the background; its colour is
the nearest of the world's inks; its shape is the template that fits it best.
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
MIN_CONTRAST = 0.19  # RGB distance: half of that between the closest ink and background (purple on gray)
MIN_AREA = 24  # pixels; the world's smallest star has about 75
BLUR = 0.7  # pixels, about what a decoder leaves
MAX_MISFIT = 0.3  # squared difference from the best template over the area; more is no known shape
MIN_OFFSET = 6.0  # pixels between two groups' centres along the relation's axis


@dataclass(frozen=True)
class DetectedObject:
    """One object seen in a picture; centre in pixels from the top left."""

    colour: str
    shape: str
    x: float
    y: float
    area: int


def find_objects(picture: np.ndarray) -> tuple[str, list[DetectedObject]]:
    """Background and objects of a picture [H, W, 3], float in [0, 1]."""
    paper = _background(picture)
    distance = np.linalg.norm(picture - BACKGROUND_RGB[paper], axis=-1)
    labels, _ = ndimage.label(distance > MIN_CONTRAST)
    found = []
    for index, window in enumerate(ndimage.find_objects(labels), start=1):
        patch, here = picture[window], labels[window] == index
        if here.sum() < MIN_AREA:
            continue
        for colour, part in _by_colour(patch, here):
            ink = COLOUR_RGB[colour] - BACKGROUND_RGB[paper]
            coverage = ((patch - BACKGROUND_RGB[paper]) @ ink / (ink @ ink)).clip(0, 1)
            # An edge lies where the blend is half ink; the first, lower threshold let soft edges in.
            part = part & (coverage > 0.5)
            if part.sum() >= MIN_AREA:
                found.append(_describe(coverage, part, list(COLOURS)[colour], window))
    return list(BACKGROUNDS)[paper], found


def _background(picture: np.ndarray) -> int:
    edge = np.concatenate((picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3), picture[:, :2].reshape(-1, 3)))
    return int(np.linalg.norm(BACKGROUND_RGB - np.median(edge, axis=0), axis=-1).argmin())


def _by_colour(patch: np.ndarray, here: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The inks in one connected patch with their masks; edges are left out of the vote, for blends look like inks."""
    core = ndimage.binary_erosion(here)
    if not core.any():
        core = here
    nearest = np.linalg.norm(patch[:, :, None] - COLOUR_RGB, axis=-1).argmin(-1)
    votes = np.bincount(nearest[core], minlength=len(COLOUR_RGB))
    main = [int(ink) for ink in np.flatnonzero(votes >= max(MIN_AREA / 2, 0.2 * core.sum()))]
    if len(main) < 2:
        return [(int(votes.argmax()), here)]
    choice = np.array(main)[np.linalg.norm(patch[:, :, None] - COLOUR_RGB[main], axis=-1).argmin(-1)]
    parts = []
    for ink in main:
        pieces, number = ndimage.label(here & (choice == ink))
        parts += [(ink, pieces == piece) for piece in range(1, number + 1)]
    return parts


def _describe(coverage: np.ndarray, part: np.ndarray, colour: str, window: tuple[slice, slice]) -> DetectedObject:
    y, x = ndimage.center_of_mass(part)
    shape = classify(coverage * ndimage.binary_dilation(part, iterations=2))
    return DetectedObject(colour, shape, float(x + window[1].start), float(y + window[0].start), int(part.sum()))


def classify(coverage: np.ndarray) -> str:
    """Name the shape in a coverage map [h, w] of 0 to 1, "unknown" if none fits.

    Each shape, slightly blurred, is tried at sizes around the one that has the map's mass, with its centre of mass on
    the map's; the smallest squared difference wins.
    """
    mass = coverage.sum()
    y, x = ndimage.center_of_mass(coverage)
    errors = {}
    for shape in SHAPES:
        around = round(float(np.sqrt(mass / _share(shape))))
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
def _share(shape: str) -> float:
    """Part of its box that a shape covers."""
    return float(shape_mask(shape, 64).mean())


def score(picture: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Whether a picture shows what a scene asks for, by column; no "spatial" where one group was asked for.

    colour: the asked colours and no others; shape: every object of a group's colour has its shape; count: as many
    objects of each colour as asked, and none besides; spatial: the groups' centres lie as asked.
    """
    _, found = find_objects(picture)
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
        out["spatial"] = _lies_as_asked(scene, by_colour)
    out["all"] = all(out.values())
    return out


def _lies_as_asked(scene: Scene, by_colour: dict[str, list[DetectedObject]]) -> bool:
    first, second = (by_colour[group.colour] for group in scene.groups)
    if not first or not second:
        return False
    axis = "x" if scene.relation in ("left", "right") else "y"
    offset = np.mean([getattr(item, axis) for item in first]) - np.mean([getattr(item, axis) for item in second])
    return bool(offset < -MIN_OFFSET if scene.relation in ("left", "above") else offset > MIN_OFFSET)


def summarise(scores: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
    """Percent right for each column, with Wilson's 95% interval and the number of pictures it is over."""
    out = {}
    for column in COLUMNS:
        values = [entry[column] for entry in scores if column in entry]
        if values:
            low, high = wilson(sum(values), len(values))
            percent = 100 * sum(values) / len(values)
            out[column] = {"percent": percent, "low": 100 * low, "high": 100 * high, "n": len(values)}
    return out


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share. Source: Wilson 1927."""
    share, spread = right / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / total + spread / (4 * total))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))
