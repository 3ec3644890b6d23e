"""The judge of the small model's world: image analysis, no model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attributes import judge, objects, outlines, words, world
from attributes.words import CaptionError, parse_caption
from attributes.world import Scene

from ..prompts import Prompt
from .base import Answer, PromptError, Question, check_images
from .questions import scene_questions


class ShapesJudge:
    """Scores images by `attributes.judge.score`, compared with the scene that the prompt's text states."""

    def __init__(self) -> None:
        digest = hashlib.sha256()
        for module in (judge, objects, outlines, words, world):
            digest.update(Path(str(module.__file__)).read_text(encoding="utf-8").encode())
        # A hash of the code: its constants decide the answers.
        self.identity = f"shapes, code {digest.hexdigest()[:8]}"

    def questions(self, prompt: Prompt) -> tuple[Question, ...]:
        """A question for each column that the prompt's text states.

        Raises: PromptError if the text states no scene of the small model's world.
        """
        return scene_questions(_scene(prompt))

    def answer(self, images: np.ndarray, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """Answer by image analysis, always with 1 or 0."""
        check_images(images, prompts)
        return [self._answer(image, _scene(prompt)) for image, prompt in zip(images, prompts, strict=True)]

    def _answer(self, image: np.ndarray, scene: Scene) -> list[Answer]:
        scores = judge.score(image.astype(np.float32) / 255, scene)
        return [Answer(float(scores[question.attribute])) for question in scene_questions(scene)]


def _scene(prompt: Prompt) -> Scene:
    try:
        return parse_caption(prompt.text)
    except CaptionError as error:
        raise PromptError(f"the shapes judge knows flat shapes only: {error}") from None
