"""BlockAnalysis with the small model: are background, colours, shapes, counts and positions as in the prompt?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...attributes.words import CaptionError, parse_caption
from ...attributes.world import Scene
from ...mmdit_core.analysis import JUDGED_FROM, MIN_PAIRS, MOST_LISTED, Cell, Change, paired_change
from ...mmdit_core.text.tokens import NoTokenMap
from ..comfyui.text.contexts import token_map_of
from ..errors import InputError
from .prompts import PromptList

JUDGED = "Attributes are judged by image analysis made for the small model's images: flat shapes in eight colours."
NOTE = f"{JUDGED} With one seed each attribute is right or wrong; use more seeds for percentages."
ABOUT_CHANGE = (
    "change: percentage points to the baseline with the same prompts and seeds, and Student's 95% interval over the "
    "prompts, or over the seeds of a single one. mean: over the attributes without all. intervals: Wilson's 95%, for "
    "which each image counts by itself."
)
MEAN, ALL = "mean", "all"
SCENE = 'such as "three red circles to the left of a blue star"'
Right = dict[str, bool]  # attribute -> whether it is right in an image


class Scores:
    """Which attributes of each image match its prompt's scene. Cell None is the baseline."""

    def __init__(self, *scenes: Scene):
        self.scenes = scenes
        self._right: dict[Cell | None, list[tuple[int, Right]]] = {}  # (index of the prompt, its image's attributes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The attributes of these prompts; one group alone has no spatial relation."""
        related = any(scene.relation for scene in self.scenes)
        return ("background", "colour", "shape", "count", *(("spatial",) if related else ()), ALL)

    def judge(self, image: torch.Tensor, prompt: int = 0) -> Right:
        """Judge a decoded image [H, W, 3] in [0, 1]. Args: prompt, its index."""
        from ...attributes.judge import score  # deferred: scipy.ndimage is slow to import

        found = score(image[..., :3].nan_to_num().clamp(0, 1).numpy(), self.scenes[prompt])
        return {column: found[column] for column in self.columns if column in found}

    def note(self, cell: Cell | None, right: Right, prompt: int = 0) -> None:
        """Count a judged image."""
        self._right.setdefault(cell, []).append((prompt, right))

    def percent(self, cell: Cell | None, column: str) -> float | None:
        """Percent of the images judged so far that are right; None if there is none."""
        found = self._values(cell, column)
        return 100 * sum(found) / len(found) if found else None

    def change(self, cell: Cell, column: str) -> Change:
        """The change of an attribute, or of MEAN, in percentage points, over the prompts or a single one's seeds."""
        return paired_change(self._units(cell, column), self._units(None, column))

    @property
    def decides(self) -> bool:
        """Whether a loss of images means something: pairs enough, and most baseline images right."""
        right = self.percent(None, ALL)
        return right is not None and right >= JUDGED_FROM and len(self._units(None, ALL)) >= MIN_PAIRS

    def losses(self, cells: Sequence[Cell]) -> dict[int, float]:
        """Block -> the loss of images that are right in all attributes, in points, for cells of one operation."""
        return {cell.block: -self.change(cell, ALL).mean for cell in cells}

    def report(self, cell: Cell | None) -> dict[str, Any]:
        """The entry of a cell in the report."""
        from ...attributes.judge import wilson

        values = {column: self._values(cell, column) for column in self.columns}
        spans = {column: wilson(sum(found), len(found)) for column, found in values.items() if found}
        entry: dict[str, Any] = {
            "attributes": {column: self.percent(cell, column) for column in self.columns},
            "intervals": {column: [round(100 * end, 1) for end in span] for column, span in spans.items()},
        }
        if cell is not None:
            entry["change"] = {column: _plain(self.change(cell, column)) for column in (*spans, MEAN)}
        found = self._right.get(cell, [])
        if 1 < len(self.scenes) <= MOST_LISTED:  # a letter for each image, in the order of the prompts
            marks = {True: "1", False: "0", None: "-"}
            entry["right"] = {
                column: "".join(marks[right.get(column)] for _, right in found) for column in self.columns
            }
        return entry

    def _values(self, cell: Cell | None, column: str) -> list[bool]:
        return [right[column] for _, right in self._right.get(cell, []) if column in right]

    def _units(self, cell: Cell | None, column: str) -> list[float]:
        """Percent right of each prompt, the mean over its seeds; of a single prompt, of each seed.

        Images of one prompt resemble each other: as independent values they would make the interval too narrow.
        """
        units: dict[int, list[float]] = {}
        for index, (prompt, right) in enumerate(self._right.get(cell, [])):
            names = [name for name in right if name != ALL] if column == MEAN else [column] * (column in right)
            if names:
                unit = prompt if len(self.scenes) > 1 else index
                units.setdefault(unit, []).append(100 * sum(right[name] for name in names) / len(names))
        return [sum(found) / len(found) for found in units.values()]


def _plain(change: Change) -> dict[str, float | None]:
    ends = {name: None if end is None else round(end, 2) for name, end in (("low", change.low), ("high", change.high))}
    return {"points": round(change.mean, 2), **ends}


def scores_for(node: str, positive, name: str = "attributes") -> Scores:
    """Read the scene from the positive prompt. Args: name, of the input that turns the judge on.

    Raises: InputError for a prompt without a token map, or one that names no scene of the small model's world.
    """
    off = "turn attributes off" if name == "attributes" else "set judge to none"
    try:
        tokens = token_map_of(positive[0])
    except NoTokenMap as error:
        right = f"Connect a prompt straight from CLIPTextEncode or TripleTextEncode, or {off}"
        raise InputError(node, name, f"the positive prompt's words are not known: {error}", right) from error
    read = [encoder.words for encoder in tokens.encoders if encoder.present and encoder.words]
    try:
        return Scores(parse_caption(" ".join(word.text for word in read[0]) if read else ""))
    except CaptionError as error:
        raise InputError(node, name, str(error), f"Write a prompt {SCENE}, or {off}") from error


def scores_of(node: str, prompts: PromptList) -> Scores:
    """Read the scene of each prompt. Raises: InputError for one that names no scene of the small model's world."""
    scenes = []
    for text, origin in zip(prompts.texts, prompts.origins, strict=True):
        try:
            scenes.append(parse_caption(text))
        except CaptionError as error:
            right = f"Write prompts {SCENE}, or set judge to none and turn attributes off"
            raise InputError(node, "prompts", f"{origin}: {error}", right) from error
    return Scores(*scenes)
