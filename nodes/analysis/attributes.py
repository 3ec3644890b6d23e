"""BlockAnalysis with the small model: is the colour, the shape, the count, the place what the prompt asked for?"""

from __future__ import annotations

from typing import Any

import torch

from ...attributes.words import CaptionError, parse_caption
from ...attributes.world import Scene
from ...mmdit_core.analysis import Cell
from ..comfyui.text.conditioning import TOKEN_MAP
from ..errors import InputError

NOTE = (
    "Attributes are judged by image analysis that knows the small model's world: flat shapes in eight colours. "
    "With one seed each is right or wrong; take more for shares."
)


class Scores:
    """Which attributes of each picture are right, seed by seed."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self._right: dict[Cell | None, list[dict[str, bool]]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """The attributes that this prompt has: a single group has no place beside another."""
        return ("colour", "shape", "count", *(("spatial",) if self.scene.relation else ()), "all")

    def add(self, cell: Cell | None, picture: torch.Tensor) -> None:
        """Judge one decoded picture [H, W, 3] in [0, 1]; cell None is the untouched one."""
        from ...attributes.judge import score  # scipy's image analysis takes a moment to import

        self._right.setdefault(cell, []).append(score(picture[..., :3].nan_to_num().clamp(0, 1).numpy(), self.scene))

    def percent(self, cell: Cell | None, column: str) -> float | None:
        """Percent of the pictures so far that are right; None before the first."""
        found = self._right.get(cell, [])
        return 100 * sum(entry[column] for entry in found) / len(found) if found else None

    def report(self, cell: Cell | None) -> dict[str, Any]:
        """One cell's entry in the report."""
        return {"attributes": {column: self.percent(cell, column) for column in self.columns}}


def scores_for(node: str, positive) -> Scores:
    """Raises: InputError for a prompt without a token map, or one that the small model's world has no picture of."""
    prompt = _prompt(positive)
    if prompt is None:
        raise InputError(
            node,
            "attributes",
            "the positive prompt does not carry its words",
            "Encode it with TripleTextEncode, or turn attributes off",
        )
    try:
        return Scores(parse_caption(prompt))
    except CaptionError as error:
        raise InputError(
            node,
            "attributes",
            str(error),
            'Write a prompt such as "three red circles to the left of a blue star", or turn attributes off',
        ) from error


def _prompt(positive) -> str | None:
    """The words of a conditioning as its first encoder read them; None where TripleTextEncode did not make it."""
    found = positive[0][1].get(TOKEN_MAP)
    if found is None:
        return None
    return next((" ".join(word.text for word in e.words) for e in found.encoders if e.present and e.words), "")
