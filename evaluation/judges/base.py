"""What a judge is: its questions about a prompt, and its answers about images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..prompts import Prompt


class PromptError(ValueError):
    """A prompt that a judge has no questions for."""


class JudgeError(RuntimeError):
    """A judge that cannot be made or gives no answers: what is missing, and how to correct it."""


@dataclass(frozen=True)
class Question:
    """A yes/no question about an image; its answer counts for an attribute."""

    attribute: str
    text: str


@dataclass(frozen=True)
class Answer:
    """An answer: value in [0, 1], 1 yes and 0 no, None if unreadable; confidence, its probability, None if unknown."""

    value: float | None
    confidence: float | None = None


class Judge(Protocol):
    """Judges images of prompts.

    Fields: identity, all that decides its answers; part of cache keys and reports.
    """

    @property
    def identity(self) -> str:
        """Name, model, address without key, version of the wording."""

    def questions(self, prompt: Prompt) -> tuple[Question, ...]:
        """The questions about each image of a prompt.

        Raises: PromptError for a prompt that this judge has no questions for.
        """

    def answer(self, images: np.ndarray, prompts: Sequence[Prompt]) -> list[list[Answer]]:
        """Answer the questions about each image.

        Args: images [B, H, W, 3], uint8; prompts, one for each image.
        Returns: for each image its answers, in the order of `questions`.
        Raises: PromptError; JudgeError.
        """


def check_images(images: np.ndarray, prompts: Sequence[Prompt]) -> None:
    """Raises ValueError unless images are [B, H, W, 3], uint8, with a prompt for each."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images, but {len(prompts)} prompts")
