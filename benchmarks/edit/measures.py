"""What is measured of an edit: whether the new image is right, and the fraction of the rest that stays.

The rest is everything but what the edit concerns:

- colour, shape, count: everything but the objects of the group that changes, in the old image and in the new one;
- position: everything but all objects of both images, so that only the background can stay;
- background: the inside of all objects of the old image.

Objects are those that the judge detects: the pixels in an object's box that differ from the background. The objects
that an edit concerns are grown by GROWN pixels, and the objects of a background edit eroded by ERODED pixels.

The VAE draws an object on another background with other errors, also inside of it. Even the exact edit, drawn and
encoded, differs there by more than SAME; therefore the fraction within NEAR is measured, too.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import ndimage

from attributes.judge import score
from attributes.objects import BACKGROUND_RGB, VISIBLE, find_objects
from attributes.world import BACKGROUNDS, Scene

from .edits import Edit

SAME, NEAR = 8, 24  # of 255: largest difference of a channel in a pixel that stays, or nearly stays
GROWN, ERODED = 4, 3  # pixels
BOX_MARGIN = 2  # pixels around a detected object's box in which its soft edge is
LEAST = 50  # pixels of objects in the rest; fewer are edges
KEPT = 0.95  # fraction of the rest that stays if an image counts as kept


def measure(edit: Edit, before: np.ndarray, after: np.ndarray) -> dict:
    """Measure an edit.

    Args: before, after, the decoded images [H, W, 3], uint8.
    Returns: right, whether the judge finds everything right for the target; kept and near, the fractions of the rest
        within SAME and NEAR; objects, the same fraction as kept of the objects alone that are part of the rest, None
        if there are none; wrong, the judge's columns that are not right.
    """
    judged = score(after.astype(np.float32) / 255, edit.target)
    rest = rest_of(edit, before, after)
    apart = np.abs(before.astype(int) - after.astype(int)).max(-1)
    kept, near = (float((apart[rest] <= limit).mean()) if rest.any() else 1.0 for limit in (SAME, NEAR))
    others = rest & object_mask(before, edit.source.background)
    objects = float((apart[others] <= SAME).mean()) if others.sum() >= LEAST else None
    wrong = [name for name, right in judged.items() if name not in ("all", "unclear") and not right]
    return {"right": judged["all"], "kept": kept, "near": near, "objects": objects, "wrong": wrong}


def is_right(image: np.ndarray, scene: Scene) -> bool:
    """True if the judge finds everything in an image [H, W, 3], uint8, right for a scene."""
    return score(image.astype(np.float32) / 255, scene)["all"]


def rest_of(edit: Edit, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The mask [H, W] of the pixels that an edit should keep. Args: as of `measure`."""
    if edit.kind == "background":
        return ndimage.binary_erosion(object_mask(before, edit.source.background), iterations=ERODED)
    colours = None
    if edit.group is not None:
        colours = {scene.groups[edit.group].colour for scene in (edit.source, edit.target)}
    masks = (object_mask(image, edit.source.background, colours) for image in (before, after))
    return ~ndimage.binary_dilation(np.logical_or(*masks), iterations=GROWN)


def object_mask(image: np.ndarray, background: str, colours: Iterable[str] | None = None) -> np.ndarray:
    """The mask [H, W] of the objects that the judge detects. Args: image, uint8; colours of the objects, None for all.

    The objects of other colours are not part of it, where boxes overlap either.
    """
    values = image.astype(np.float32) / 255
    ground = BACKGROUND_RGB[list(BACKGROUNDS).index(background)]
    visible = np.linalg.norm(values - ground, axis=-1) > VISIBLE
    own, other = np.zeros(visible.shape, bool), np.zeros(visible.shape, bool)
    for item in find_objects(values)[1]:
        left, top, right, bottom = (int(edge) for edge in item.box)
        window = (
            slice(max(0, top - BOX_MARGIN), bottom + BOX_MARGIN),
            slice(max(0, left - BOX_MARGIN), right + BOX_MARGIN),
        )
        if colours is None or item.colour in colours:
            own[window] |= visible[window]
        else:
            other[window] |= visible[window]
    return own & ~other
