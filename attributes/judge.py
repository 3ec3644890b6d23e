"""Judge an image of the small model's world: its background, its objects' colours, shapes, counts and positions.

`docs/judge.md` has the definitions, and how often the judge errs.
"""

from __future__ import annotations

import numpy as np

from .objects import UNKNOWN, DetectedObject, find_objects
from .world import SIZES, Scene

COLUMNS = ("background", "colour", "shape", "count", "spatial", "all")
UNCLEAR = "unclear"
MAX_SIZE_RATIO = 1.55  # of the sides of two objects of one group
REVERSED_SIZE_RATIO = 1.4  # by which the group with the smaller size word may be larger
SIZE_LIMITS = {"small": (0.0, 48.0), "": (0.0, np.inf), "large": (14.0, np.inf)}  # pixels of a side, by size word
MAX_OVERLAP = 3.0  # pixels of the groups' extents along the relation's axis
MIN_SLOPE = 1 / 3  # offset along the relation's axis, in offsets across it


def score(image: np.ndarray, scene: Scene) -> dict[str, bool]:
    """Compare an image with a scene.

    Args: image [H, W, 3], float in [0, 1]; scene, with background "" if its caption names none.
    Returns: True or False by column. background: flat, and the scene's. colour: the scene's colours and no others.
        shape: every object of a group's colour is a whole object of its shape; the objects of a group have similar
        sizes, and size words are not reversed. count: the right number of objects of each colour, and no others.
        spatial: the groups have the scene's relation; absent for a scene of one group. all: all of these. unclear,
        which is not one of COLUMNS: an object has no known shape or colour, the background is none of the known ones,
        or there is no object.
    """
    background, found = find_objects(image)
    groups = [[item for item in found if item.colour == group.colour] for group in scene.groups]
    out = {
        "background": background != UNKNOWN and scene.background in ("", background),
        "colour": {item.colour for item in found} == {group.colour for group in scene.groups},
        "shape": all(item.shape != UNKNOWN for item in found)
        and all(
            items and all(item.shape == group.shape for item in items) and _are_similar(items)
            for group, items in zip(scene.groups, groups, strict=True)
        )
        and _sizes_fit(scene, groups),
        "count": len(found) == sum(group.count for group in scene.groups)
        and all(len(items) == group.count for group, items in zip(scene.groups, groups, strict=True)),
    }
    if scene.relation:
        out["spatial"] = _has_relation(scene, groups)
    out["all"] = all(out.values())
    known = found and all(UNKNOWN not in (item.shape, item.colour) for item in found)
    return {**out, UNCLEAR: not known or background == UNKNOWN}


def _are_similar(items: list[DetectedObject]) -> bool:
    sides = [item.side for item in items]
    return max(sides) <= MAX_SIZE_RATIO * min(sides)


def _sizes_fit(scene: Scene, groups: list[list[DetectedObject]]) -> bool:
    """True if no group contradicts its size word, alone or next to the other group."""
    sides = [float(np.mean([item.side for item in items])) for items in groups if items]
    if len(sides) < len(groups):
        return False
    limits = [SIZE_LIMITS[group.size] for group in scene.groups]
    if not all(low <= side <= high for side, (low, high) in zip(sides, limits, strict=True)):
        return False
    words = [SIZES[group.size] for group in scene.groups]
    smaller, larger = sides[words.index(min(words))], sides[words.index(max(words))]
    return smaller <= REVERSED_SIZE_RATIO * larger


def _has_relation(scene: Scene, groups: list[list[DetectedObject]]) -> bool:
    """True if the first group is on its side of the second, and none of its objects is beyond one of the other's."""
    if not all(groups):
        return False
    axis = 0 if scene.relation in ("left", "right") else 1
    near, far = groups if scene.relation in ("left", "above") else groups[::-1]
    overlap = max(item.box[axis + 2] for item in near) - min(item.box[axis] for item in far)
    centres = [np.mean([(item.x, item.y) for item in items], axis=0) for items in (near, far)]
    offset = centres[1] - centres[0]
    return bool(overlap <= MAX_OVERLAP and offset[axis] >= MIN_SLOPE * abs(offset[1 - axis]))


def summarise(scores: list[dict[str, bool]]) -> dict[str, dict[str, float]]:
    """Percent right by column, and unclear, with Wilson's 95% interval (low, high) and the number n of images."""
    out = {}
    for column in (*COLUMNS, UNCLEAR):
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
