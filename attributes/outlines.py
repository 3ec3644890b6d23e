"""Name the shape of an object by its outline.

An outline is described by its profile: along rays from the centre of mass, how far the object extends. The profile is
compared with those of many outlines: the four shapes in the proportions that pass for them, and others, which do not.
A polygon's profile under a Gaussian blur is computed without an image: it is the mean over parallel rays.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

RAYS = 120  # angles of a profile, clockwise from the right; 3 degrees
STEP = 0.5  # pixels between samples on a ray
UNKNOWN = "unknown"
BLURS = (0.03, 0.07, 0.12)  # standard deviations of the blur in square roots of the area
TURN = 4  # rays: the known shapes may be rotated by 12 degrees

_ANGLES = np.arange(RAYS) * 2 * np.pi / RAYS
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(8)


def profile(coverage: np.ndarray) -> np.ndarray:
    """Measure the profile of a coverage map.

    Args: coverage [h, w] in [0, 1], 0 outside of the object.
    Returns: [RAYS], the length of the object along each ray from its centre of mass, in pixels.
    """
    coverage = np.pad(coverage, 1)  # samples beyond the first and last pixels' centres are interpolated
    y, x = ndimage.center_of_mass(coverage)
    rows, columns = np.nonzero(coverage > 0.02)
    reach = float(np.hypot(rows - y, columns - x).max()) + 2
    radii = np.arange(0, reach, STEP)
    points = np.stack((y + np.sin(_ANGLES)[:, None] * radii, x + np.cos(_ANGLES)[:, None] * radii))
    samples = ndimage.map_coordinates(coverage, points, order=1, mode="constant")
    return STEP * (samples.sum(1) - samples[:, 0] / 2)


def polygon_profile(corners: np.ndarray, blur: float) -> np.ndarray:
    """Compute the profile of a blurred polygon.

    Args: corners [n, 2] (x, y), y down; blur, standard deviation in square roots of the polygon's area.
    Returns: [RAYS], in units of the radius of the circle of equal area.
    """
    ends = np.roll(corners, -1, 0)
    cross = corners[:, 0] * ends[:, 1] - corners[:, 1] * ends[:, 0]
    area = cross.sum() / 2
    centre = ((corners + ends) * cross[:, None]).sum(0) / (6 * area)
    scale = math.sqrt(abs(area) / math.pi)
    start, edge = (corners - centre) / scale, (ends - corners) / scale
    direction = np.stack((np.cos(_ANGLES), np.sin(_ANGLES)), 1)[:, None, None]
    normal = np.stack((-np.sin(_ANGLES), np.cos(_ANGLES)), 1)[:, None, None]
    offset = start - normal * (_NODES * blur * math.sqrt(math.pi))[:, None, None]

    def crossed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

    across = crossed(direction, edge)
    safe = np.where(abs(across) < 1e-12, 1e-12, across)
    along, position = crossed(offset, edge) / safe, crossed(offset, direction) / safe
    hit = (position >= 0) & (position < 1) & (along > 0)
    # A ray leaves the polygon where it crosses an edge in one direction, and enters it in the other.
    lengths = (np.where(hit, along, 0) * np.sign(across) * np.sign(area)).sum(-1)
    return lengths @ _WEIGHTS / _WEIGHTS.sum()


def _polar(radii: list[float], start: float = -90.0) -> np.ndarray:
    """Corners at equal angles with these radii, the first one at `start` degrees."""
    angles = np.radians(start) + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.array(radii)[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)


def _rounded(corners: np.ndarray, amount: float) -> np.ndarray:
    """Corners replaced by curves that begin at `amount` from them."""
    if not amount:
        return corners
    before, after = np.roll(corners, 1, 0) - corners, np.roll(corners, -1, 0) - corners
    near, far = (
        corners + side * np.minimum(0.45, amount / np.linalg.norm(side, axis=1))[:, None] for side in (before, after)
    )
    t = np.linspace(0, 1, 4)[None, :, None]
    curves = (1 - t) ** 2 * near[:, None] + 2 * t * (1 - t) * corners[:, None] + t**2 * far[:, None]
    return curves.reshape(-1, 2)


def _arc(centre: tuple[float, float], radius: float, start: float, end: float) -> np.ndarray:
    angles = np.radians(np.linspace(start, end, 25))
    return np.array(centre) + radius * np.stack((np.cos(angles), np.sin(angles)), 1)


def _box(ratio: float, rounding: float = 0.0) -> np.ndarray:
    """A rectangle of height 2."""
    return _rounded(np.array([(-1.0, -1.0), (1, -1), (1, 1), (-1, 1)]) * np.array((ratio, 1)), 2 * rounding)


def _triangle(height: float, apex: float = 0.0, rounding: float = 0.0) -> np.ndarray:
    """A triangle of base 1 whose apex is to the right of the base's middle."""
    return _rounded(np.array([(apex, -height), (0.5, 0), (-0.5, 0)]), rounding)


def _star(points: int, inner: float, ratio: float = 1.0, rounding: float = 0.0) -> np.ndarray:
    return _rounded(_polar([1.0, inner] * points) * np.array((ratio, 1)), 2 * rounding)


def known_outlines() -> Iterator[tuple[str, np.ndarray, range]]:
    """The outlines that pass for the four shapes: name, corners, rotations in rays."""
    ratios = [math.exp(value) for value in (-0.18, -0.09, 0.0, 0.09, 0.18)]
    yield "circle", _polar([1.0] * 60), range(1)
    for ratio in (1.05, 1.1, 1.15, 1.2):
        yield "circle", _polar([1.0] * 60) * np.array((ratio, 1)), range(0, RAYS // 2, 5)
    slight = range(-TURN, TURN + 1)
    for ratio, rounding in itertools.product(ratios, (0.0, 0.08, 0.15)):
        yield "square", _box(ratio, rounding), slight
    for height, apex, rounding in itertools.product(np.linspace(0.68, 1.32, 9), (-0.1, 0.0, 0.1), (0.0, 0.1)):
        yield "triangle", _triangle(height, apex, rounding), slight
    for inner, ratio in itertools.product(np.arange(0.32, 0.6, 0.04), (0.83, 0.91, 1.0, 1.1, 1.2)):
        yield "star", _star(5, inner, ratio), slight
    for inner in (0.38, 0.46, 0.54):
        yield "star", _star(5, inner, 1.0, 0.08), slight


def other_outlines() -> Iterator[np.ndarray]:
    """Outlines that pass for none of the four shapes, in any rotation."""
    for ratio in (1.37, 1.5, 1.7, 2.0, 2.6):
        yield _polar([1.0] * 60) * np.array((ratio, 1))
        yield _box(ratio)
    for ratio in (3.5, 5.0, 8.0):
        yield _box(ratio)
    for shear, ratio in itertools.product((0.36, 0.6), (0.9, 1.1)):
        yield _box(ratio) @ np.array([[1, 0], [shear, 1]])
        yield _box(ratio) @ np.array([[1, 0], [-shear, 1]])
    for top in (0.35, 0.5, 0.65):
        for height in (0.5, 0.8):
            yield np.array([(-top, -height), (top, -height), (1, height), (-1, height)])
    yield from (_polar([1.0, width] * 2) for width in (0.45, 0.6, 0.75))
    yield from (_polar([1.0] * 5), _polar([1.0] * 6), _star(4, 0.4), _star(4, 0.55), _star(6, 0.55), _star(6, 0.65))
    yield from (
        _star(5, 0.75),
        _star(5, 0.42, 1.5),
        _star(5, 0.42, 1 / 1.5),
        _star(5, 0.42, 1.75),
        _star(5, 0.42, 0.57),
    )
    for inner in (0.36, 0.44, 0.52):  # stars without one or two arms
        for tips in ([inner, 1, 1, 1, 1], [inner, inner, 1, 1, 1], [inner, 1, inner, 1, 1]):
            yield _polar([radius for tip in tips for radius in (tip, inner)])
    yield from (_triangle(height) for height in (0.3, 0.42, 0.52, 1.7, 2.1, 2.6))
    yield from (_triangle(height, apex) for height in (0.5, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0) for apex in (-0.45, 0.45))
    yield from (_arc((0, 0), 1, 0, 180), _arc((0, 0), 1, 20, 160), _arc((0, 0), 1, -25, 205))
    yield from (
        np.concatenate((_arc((0, 0), 1, 45, 315), [(0.0, 0.0)])),
        np.concatenate((_arc((0, 0), 1, 0, 270), [(0.0, 0.0)])),
    )
    yield from (np.concatenate((_arc((0, 0), 1, -30, 210), [(0.0, tip)])) for tip in (-1.5, -2.0))  # drops
    for shift, radius in ((0.45, 0.85), (0.45, 0.75), (0.7, 0.7)):  # crescents
        bound = math.degrees(math.acos((1 + shift**2 - radius**2) / (2 * shift)))
        near = math.degrees(math.acos((1 - shift**2 - radius**2) / (2 * shift * radius)))
        yield np.concatenate((_arc((0, 0), 1, bound, 360 - bound), _arc((shift, 0), radius, 360 - near, near)))
    for width in (0.25, 0.33, 0.45):
        w = width
        yield np.array(
            [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)]
        )
    yield from (_heart(), _spade(), np.array([(-1, -1), (0, -1), (0, 0), (1, 0), (1, 1), (-1, 1.0)]))
    yield np.array([(-1, -0.4), (0, -0.4), (0, -1), (1, 0), (0, 1), (0, 0.4), (-1, 0.4)])  # arrow
    yield np.array([(-1, -1), (1, -1), (1, -0.3), (0.3, -0.3), (0.3, 1), (-0.3, 1), (-0.3, -0.3), (-1, -0.3)])  # tee


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack((16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)), 1)


def _spade() -> np.ndarray:
    leaf = _heart()[:, ::1] * np.array((-1, -1.0))  # the point up, the two lobes down
    stem = np.array([(2.0, 6.0), (6.0, 19.0), (-6.0, 19.0), (-2.0, 6.0)])
    return np.concatenate((leaf[1:], stem[::-1] if leaf[1, 0] > 0 else stem))


@dataclass(frozen=True)
class Bank:
    """Profiles [n, RAYS] of all outlines, the terms of their distances, and their names."""

    names: np.ndarray
    profiles: np.ndarray
    weights: np.ndarray  # of a squared difference along a ray
    crossed: np.ndarray  # weights x profiles
    constant: np.ndarray  # [n]
    is_known: np.ndarray  # [n]


@functools.cache
def bank() -> Bank:
    """All outlines at all rotations and blurs; computed once, in about half a second."""
    names, profiles = [], []
    for name, corners, turns in known_outlines():
        for blur in BLURS:
            one = polygon_profile(corners, blur)
            profiles += [np.roll(one, turn) for turn in turns]
            names += [name] * len(turns)
    for corners in other_outlines():
        one = polygon_profile(corners, BLURS[1])
        profiles += [np.roll(one, turn) for turn in range(0, RAYS, 2)]
        names += [UNKNOWN] * (RAYS // 2)
    found = np.array(profiles, np.float32)
    slope = (np.roll(found, -1, 1) - np.roll(found, 1, 1)) / (4 * np.pi / RAYS)
    # A difference along a ray that crosses the outline at an angle is smaller across it, on a longer arc.
    oblique = np.sqrt(1 + (slope / np.maximum(found, 0.05)) ** 2)
    weights = found / oblique / (found * oblique).sum(1, keepdims=True)
    crossed = weights * found
    all_names = np.array(names)
    return Bank(all_names, found, weights, crossed, (crossed * found).sum(1), all_names != UNKNOWN)


def distances(measured: np.ndarray) -> np.ndarray:
    """Root mean square distance between a profile's outline and those of the bank.

    Args: measured [RAYS], in units of the radius of the circle of equal area.
    Returns: [n], in the same units.
    """
    all_, measured = bank(), measured.astype(np.float32)
    square = all_.weights @ (measured * measured) - 2 * (all_.crossed @ measured) + all_.constant
    return np.sqrt(np.maximum(square, 0))
