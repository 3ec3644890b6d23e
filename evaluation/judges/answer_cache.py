"""Answers on disk: one small JSON file for the answers about one image."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmdit_core.files import write_whole

from .base import Answer, Question


def cache_key(identity: str, image: np.ndarray, caption: str, questions: Sequence[Question]) -> str:
    """A hash of all that decides the answers: the judge, the image [H, W, 3] uint8, the caption and the questions."""
    words = [identity, list(image.shape), caption, [question.text for question in questions]]
    digest = hashlib.sha256(json.dumps(words).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


class AnswerCache:
    """A folder of answers that several processes may read and write; a killed process leaves no damaged answers."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def read(self, key: str, number: int) -> list[Answer] | None:
        """The answers under a key; None if there are none, another number of them, or a damaged file."""
        try:
            values = json.loads(self._file(key).read_text(encoding="utf-8"))["answers"]
            answers = [Answer(float(value), None if p is None else float(p)) for value, p in values]
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return answers if len(answers) == number and all(answer.value in (0.0, 1.0) for answer in answers) else None

    def write(self, key: str, answers: Sequence[Answer]) -> None:
        """Write answers, all of them readable; the file appears complete or not at all."""
        text = json.dumps({"answers": [[answer.value, answer.confidence] for answer in answers]})
        # On Windows this fails while another process reads the file, which then has these answers already.
        with contextlib.suppress(PermissionError):
            write_whole(self._file(key), text)
