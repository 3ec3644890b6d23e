"""Detect the background and the objects of an image by classical image analysis.

Everything that differs from the background is part of an object. An object is right only if it has one colour, close to
a named one, and if one of the four shapes, drawn in that colour, leaves nothing of it unexplained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .outlines import RAYS, UNKNOWN, bank, distances, profile
from .world import BACKGROUNDS, COLOURS

COLOUR_RGB = np.array(list(COLOURS.values()), np.float32) / 255
BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), np.float32) / 255

# RGB distances in units of 1.
VISIBLE = 0.12  # from the background; a smaller difference is not an object
MAX_COLOUR_DISTANCE, MAX_COLOUR_RATIO = 0.2, 0.6  # to the nearest named colour; to it, by that to the second nearest
ONE_COLOUR = 0.2  # within an object, from its median
ODD = 0.25  # from the blends of an object and the background; pixels farther away are another object
NEUTRAL = 0.1  # largest difference of a background's channels
LIGHTNESS = {"white": (0.88, 1.0), "gray": (0.38, 0.62), "black": (0.0, 0.12)}  # range of a background's channels
MAX_NOISE = 0.07  # standard deviation in the background
FLAT, MAX_UNEVEN = 0.1, 0.01  # distance from the background's median; the fraction of it that may be farther

# Pixels and fractions of areas.
SMOOTHING = 0.6  # standard deviation
MIN_PIECE = 10  # pixels that differ from the background and are a piece; fewer are ignored
MIN_ODD = 20  # pixels at an object in another colour that are a piece
MIN_SHAPE = 40  # pixels; the shape of a smaller object is unknown
REACH = 3  # pixels around an object that belong to its edge
EDGE = 2  # pixels on both sides of an outline where a blend of colours is expected
MAX_PIECES = 30  # more are noise
MAX_AREA = 0.12  # of the image; an object of unknown shape that is larger is a part of the background
MAX_GAPS, MAX_SPOTS = 0.08, 0.12  # fractions of an object's inside that are background, or in another colour
# Root mean square distance of an outline from that of the nearest known shape, in radii of the circle of equal area;
# by that from the nearest other outline.
MAX_DISTANCE = {"circle": 0.045, "square": 0.05, "triangle": 0.05, "star": 0.08}
MAX_DISTANCE_RATIO = 0.93
FILLED = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}  # area of a shape in a square of side 1
MAX_BLUR, MAX_BLUR_BY_SIDE, MOST_BLUR = 1.0, 0.04, 2.5  # deviation of an edge: pixels, more by the side, at most


@dataclass(frozen=True)
class DetectedObject:
    """One detected object.

    Fields: colour and shape, "unknown" if none is near; x, y, centre in pixels from the top left; area in pixels; box,
        (left, top, right, bottom) in pixels.
    """

    colour: str
    shape: str
    x: float
    y: float
    area: int
    box: tuple[float, float, float, float]

    @property
    def side(self) -> float:
        """The side in pixels of a square around the object if it were not rotated."""
        longer = max(self.box[2] - self.box[0], self.box[3] - self.box[1])
        return float(np.sqrt(self.area / FILLED[self.shape])) if self.shape in FILLED else longer


@dataclass(frozen=True)
class _Piece:
    """Pixels that are one object, or a part of one: a mask [H, W], their median colour, and their region."""

    mask: np.ndarray
    rgb: np.ndarray
    region: int


@dataclass(frozen=True)
class _Image:
    """A slightly smoothed image [H, W, 3] and the colour of its background."""

    soft: np.ndarray
    ground: np.ndarray

    def contrast(self) -> np.ndarray:
        """RGB distance of each pixel from the background."""
        return np.linalg.norm(self.soft - self.ground, axis=-1)

    def coverage(self, rgb: np.ndarray, window: tuple | np.ndarray = ()) -> np.ndarray:
        """How much of each pixel has a colour, the rest of which is background: in [0, 1]. Args: window, or a mask."""
        contrast = rgb - self.ground
        return ((self.soft[window] - self.ground) @ contrast / max(float(contrast @ contrast), 1e-6)).clip(0, 1)


def find_objects(image: np.ndarray) -> tuple[str, list[DetectedObject]]:
    """Detect the background and the objects.

    Args: image [H, W, 3], float in [0, 1].
    Returns: name of the background, "unknown" if it is not flat, or not white, gray or black; objects.
    """
    image = np.asarray(image, np.float32)
    soft = ndimage.gaussian_filter(image, (SMOOTHING, SMOOTHING, 0))
    smooth = _Image(soft, _ground(soft))
    contrast = smooth.contrast()
    pieces = _pieces(smooth, contrast > VISIBLE)
    if len(pieces) > MAX_PIECES:
        return UNKNOWN, [_unknown(piece) for piece in pieces[:MAX_PIECES]]
    owner, distance = _owners(pieces, contrast.shape)
    found, outside = [], distance > REACH
    for region in sorted({piece.region for piece in pieces}):
        for item, mask in _describe_region(smooth, pieces, region, owner):
            if _is_background(item, mask):
                outside |= mask
            else:
                found.append(item)
    # What is visible, but near no object, or is no blend of an object and the background, is an object, too.
    odd = ndimage.binary_opening(_residual(smooth, pieces, owner) > ODD)
    left, _ = ndimage.label(((contrast > VISIBLE) & (distance > REACH)) | odd)
    for mask in (left == index for index, area in enumerate(np.bincount(left.ravel())) if index and area >= MIN_PIECE):
        if mask.sum() >= MIN_ODD or not (mask & odd).any():
            item = _unknown(_Piece(mask, np.median(soft[mask], axis=0), 0))
            if not _is_background(item, mask):
                found.append(item)
                outside &= ~ndimage.binary_dilation(mask, iterations=REACH)
    return _name_background(image, smooth.ground, contrast, outside), found


def _ground(soft: np.ndarray) -> np.ndarray:
    """The background's colour: the median along the image's edges."""
    sides = (soft[:2], soft[-2:], soft[:, :2], soft[:, -2:])
    return np.median(np.concatenate([side.reshape(-1, 3) for side in sides]), axis=0)


def _name_background(image: np.ndarray, ground: np.ndarray, contrast: np.ndarray, outside: np.ndarray) -> str:
    if not outside.any() or (contrast[outside] > FLAT).mean() > MAX_UNEVEN:
        return UNKNOWN
    rough = np.abs(image[1:, 1:] - image[:-1, :-1])[outside[1:, 1:] & outside[:-1, :-1]]
    if rough.size and 1.05 * np.median(rough, axis=0).max() > MAX_NOISE:
        return UNKNOWN
    if ground.max() - ground.min() > NEUTRAL:
        return UNKNOWN
    return next((n for n, (low, high) in LIGHTNESS.items() if ground.min() >= low and ground.max() <= high), UNKNOWN)


def _pieces(smooth: _Image, visible: np.ndarray) -> list[_Piece]:
    """Split what is visible into regions, regions by colour, and these where they are not opaque."""
    # Between two colours a blend may be that of the background: closed, so that both are in one region.
    labels, _ = ndimage.label(ndimage.binary_closing(np.pad(visible, 1))[1:-1, 1:-1] | visible)
    pieces: list[_Piece] = []
    for region, window in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[window] == region
        if inside.sum() < MIN_PIECE:
            continue
        for rgb, part in _by_colour(smooth.soft[window], inside):
            opaque, number = ndimage.label(part & (smooth.coverage(rgb, window) > 0.5))
            sizes = np.bincount(opaque.ravel(), minlength=number + 1)
            for index in range(1, number + 1):
                if sizes[index] >= MIN_PIECE:
                    mask = np.zeros(visible.shape, bool)
                    mask[window] = opaque == index
                    pieces.append(_Piece(mask, np.median(smooth.soft[mask & _core(mask)], axis=0), region))
            if len(pieces) > MAX_PIECES:
                return pieces
    return pieces


def _core(inside: np.ndarray) -> np.ndarray:
    """Pixels of a region away from its edge, where colours are no blends."""
    for iterations in (3, 2, 1):
        core = ndimage.binary_erosion(inside, iterations=iterations)
        if core.sum() >= 8:
            return core
    return inside


def _by_colour(patch: np.ndarray, inside: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The colours in one connected region, with their masks."""
    core = _core(inside)
    pixels = patch[core]
    median = np.median(pixels, axis=0)
    if (np.linalg.norm(pixels - median, axis=-1) < ONE_COLOUR).mean() > 0.9:
        return [(median, inside)]
    nearest = np.linalg.norm(pixels[:, None] - COLOUR_RGB, axis=-1).argmin(-1)
    votes = np.bincount(nearest, minlength=len(COLOUR_RGB))
    main = np.flatnonzero(votes >= max(6, 0.12 * len(pixels)))
    if len(main) < 2:
        return [(median, inside)]
    centres = np.array([np.median(pixels[nearest == colour], axis=0) for colour in main])
    choice = np.full(inside.shape, -1)
    choice[core] = np.linalg.norm(pixels[:, None] - centres, axis=-1).argmin(-1)
    # An edge's blend resembles other colours: it has the colour of the nearest pixel that is no blend.
    rows, columns = ndimage.distance_transform_edt(choice < 0, return_distances=False, return_indices=True)
    choice = choice[rows, columns]
    return [(centre, inside & (choice == index)) for index, centre in enumerate(centres)]


def _owners(pieces: list[_Piece], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The nearest piece of each pixel, -1 beyond REACH, and the distance to it."""
    owner = np.full(shape, -1)
    for index, piece in enumerate(pieces):
        owner[piece.mask] = index
    if not pieces:
        return owner, np.full(shape, np.inf)
    distance, (rows, columns) = ndimage.distance_transform_edt(owner < 0, return_indices=True)
    return np.where(distance <= REACH, owner[rows, columns], -1), distance


def _describe_region(
    smooth: _Image, pieces: list[_Piece], region: int, owner: np.ndarray
) -> list[tuple[DetectedObject, np.ndarray]]:
    """The objects of a region with their masks; parts that form one known shape are one object of unknown colour."""
    parts = [(index, piece) for index, piece in enumerate(pieces) if piece.region == region]
    covered = [smooth.coverage(piece.rgb) * (owner == index) for index, piece in parts]
    out = []
    for (_, piece), coverage in zip(parts, covered, strict=True):
        shape, radii = classify(coverage)
        colour = _name_colour(piece.rgb)
        if shape != UNKNOWN:
            gaps, spots = _unexplained(smooth, piece.rgb, coverage, radii)
            shape = UNKNOWN if gaps > MAX_GAPS else shape
            colour = UNKNOWN if spots > MAX_SPOTS else colour
        out.append((_describe(coverage, colour, shape), coverage > 0.5))
    if len(out) > 1 and any(item.shape == UNKNOWN for item, _ in out):
        whole = ndimage.grey_closing(np.sum(covered, axis=0), 3)
        shape, _ = classify(whole)
        if shape != UNKNOWN and (whole > 0.5).sum() <= MAX_AREA * whole.size:
            return [(_describe(whole, UNKNOWN, shape), whole > 0.5)]
    return out


def _residual(smooth: _Image, pieces: list[_Piece], owner: np.ndarray) -> np.ndarray:
    """RGB distance [H, W] of each pixel near a piece from the nearest blend of its colour and the background."""
    out = np.zeros(owner.shape, np.float32)
    for index, piece in enumerate(pieces):
        own = owner == index
        pixels, contrast = smooth.soft[own] - smooth.ground, piece.rgb - smooth.ground
        cover = smooth.coverage(piece.rgb, own)
        out[own] = np.linalg.norm(pixels - cover[:, None] * contrast, axis=-1)
    return out


def _name_colour(rgb: np.ndarray) -> str:
    apart = np.linalg.norm(COLOUR_RGB - rgb, axis=-1)
    first, second = np.sort(apart)[:2]
    near = first <= MAX_COLOUR_DISTANCE and first <= MAX_COLOUR_RATIO * second
    return list(COLOURS)[int(apart.argmin())] if near else UNKNOWN


def _describe(coverage: np.ndarray, colour: str, shape: str) -> DetectedObject:
    solid = coverage > 0.5
    y, x = ndimage.center_of_mass(solid)
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    left, top, right, bottom = (float(value) for value in box)
    return DetectedObject(colour, shape, float(x), float(y), int(solid.sum()), (left, top, right, bottom))


def _unknown(piece: _Piece) -> DetectedObject:
    return _describe(piece.mask.astype(np.float32), _name_colour(piece.rgb), UNKNOWN)


def classify(coverage: np.ndarray) -> tuple[str, np.ndarray]:
    """Name the shape of a coverage map [h, w] in [0, 1], 0 outside of the object.

    Returns: a name of SHAPES, "unknown" if none fits; the profile of the shape that fits best, in pixels.
    """
    (window,) = ndimage.find_objects((coverage > 0).astype(np.uint8))
    coverage = coverage[window]
    measured = profile(coverage)
    radius = float(np.sqrt(coverage.sum() / np.pi))
    found, is_known = distances(measured / radius), bank().is_known
    best = int(np.where(is_known, found, np.inf).argmin())
    radii = bank().profiles[best] * radius
    name, distance, other = str(bank().names[best]), found[best], found[~is_known].min()
    if np.pi * radius**2 < MIN_SHAPE or distance > MAX_DISTANCE[name] or distance > MAX_DISTANCE_RATIO * other:
        return UNKNOWN, radii
    oblique = np.hypot(radii, np.gradient(radii, 2 * np.pi / RAYS))
    # The integral of c * (1 - c) across an edge is 0.564 standard deviations of its blur.
    blur = float((coverage * (1 - coverage)).sum()) / (0.564 * oblique.sum() * 2 * np.pi / RAYS)
    return (UNKNOWN if blur > min(MOST_BLUR, MAX_BLUR + MAX_BLUR_BY_SIDE * 2 * radius) else name), radii


def _unexplained(smooth: _Image, rgb: np.ndarray, coverage: np.ndarray, radii: np.ndarray) -> tuple[float, float]:
    """The fractions of the pixels inside of an outline that are background, and that have another colour."""
    (window,) = ndimage.find_objects((coverage > 0).astype(np.uint8))
    y, x = ndimage.center_of_mass(coverage[window])
    rows, columns = np.indices(coverage[window].shape)
    ray = np.round(np.arctan2(rows - y, columns - x) * RAYS / (2 * np.pi)).astype(int) % RAYS
    inside = ndimage.binary_erosion(np.hypot(rows - y, columns - x) < radii[ray], iterations=EDGE)
    pixels, cover = smooth.soft[window][inside], smooth.coverage(rgb, window)[inside]
    blend = smooth.ground + cover[:, None] * (rgb - smooth.ground)
    spots = np.linalg.norm(pixels - blend, axis=-1) > ONE_COLOUR
    gaps = (np.linalg.norm(pixels - rgb, axis=-1) > ONE_COLOUR) & ~spots
    whole = max(len(pixels), 100)
    return float(gaps.sum()) / whole, float(spots.sum()) / whole


def _is_background(item: DetectedObject, mask: np.ndarray) -> bool:
    """True if a piece is a part of the background in another colour, not an object."""
    contact = max(int(side.sum()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    is_large = item.area > MAX_AREA * mask.size and UNKNOWN in (item.colour, item.shape)
    return is_large or (item.shape == UNKNOWN and contact > 0.4 * min(mask.shape))
