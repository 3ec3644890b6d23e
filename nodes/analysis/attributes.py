"""BlockAnalysis with the small model: are background, colours, shapes, counts and positions as in the prompt?"""

from __future__ import annotations

from typing import Any

import torch

from ...attributes.words import CaptionError, parse_caption
from ...attributes.world import Scene
from ...mmdit_core.analysis import Cell
from ...mmdit_core.text.tokens import NoTokenMap
from ..comfyui.text.contexts import token_map_of
from ..errors import InputError

NOTE = (
    "Attributes are judged by image analysis made for the small model's images: flat shapes in eight colours. With "
    "one seed each attribute is right or wrong; use more seeds for percentages."
)


class Scores:
    """Which attributes of each image match the prompt's scene, seed by seed. Cell None is the baseline."""

    def __init__(self, scene: Scene):
        self.scene = scene
        self._right: dict[Cell | None, list[dict[str, bool]]] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """The attributes of this prompt; one group alone has no spatial relation."""
        return ("background", "colour", "shape", "count", *(("spatial",) if self.scene.relation else ()), "all")

    def add(self, cell: Cell | None, image: torch.Tensor) -> None:
        """Judge a decoded image [H, W, 3] in [0, 1]."""
        from ...attributes.judge import score  # deferred: scipy.ndimage is slow to import

        self._right.setdefault(cell, []).append(score(image[..., :3].nan_to_num().clamp(0, 1).numpy(), self.scene))

    def percent(self, cell: Cell | None, column: str) -> float | None:
        """Percent of the images judged so far that are right; None if there is none."""
        found = self._right.get(cell, [])
        return 100 * sum(entry[column] for entry in found) / len(found) if found else None

    def report(self, cell: Cell | None) -> dict[str, Any]:
        """The entry of a cell in the report."""
        return {"attributes": {column: self.percent(cell, column) for column in self.columns}}


def scores_for(node: str, positive) -> Scores:
    """Read the scene from the positive prompt.

    Raises: InputError for a prompt without a token map, or one that names no scene of the small model's world.
    """
    try:
        tokens = token_map_of(positive[0])
    except NoTokenMap as error:
        right = "Connect a prompt straight from CLIPTextEncode or TripleTextEncode, or turn attributes off"
        raise InputError(node, "attributes", f"the positive prompt's words are not known: {error}", right) from error
    read = [encoder.words for encoder in tokens.encoders if encoder.present and encoder.words]
    try:
        return Scores(parse_caption(" ".join(word.text for word in read[0]) if read else ""))
    except CaptionError as error:
        right = 'Write a prompt such as "three red circles to the left of a blue star", or turn attributes off'
        raise InputError(node, "attributes", str(error), right) from error
