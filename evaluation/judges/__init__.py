"""Judges: image analysis of the small model's world, a vision-language model at an endpoint, and CLIP."""

from __future__ import annotations

from pathlib import Path

from .base import Answer, Judge, JudgeError, PromptError, Question

__all__ = ["KINDS", "Answer", "Judge", "JudgeError", "PromptError", "Question", "make_judge"]

KINDS = ("shapes", "endpoint", "clip")


def make_judge(
    kind: str, *, url: str = "", model: str = "", cache: Path | None = None, timeout: float = 300.0
) -> Judge:
    """Make a judge.

    Args: kind, one of KINDS. For "endpoint": url, such as http://localhost:11434/v1; model, its name there; cache, a
        folder of answers that are not requested again; timeout of a request in seconds. For "clip": model, a folder.
    Raises: JudgeError if the kind is unknown, or something that it needs is missing.
    """
    if kind == "shapes":
        from .shapes import ShapesJudge

        return ShapesJudge()
    if kind == "endpoint":
        from .endpoint import EndpointJudge

        return EndpointJudge(url, model, cache=cache, timeout=timeout)
    if kind == "clip":
        from .clip import ClipJudge

        return ClipJudge(Path(model) if model else None)
    raise JudgeError(f"unknown judge {kind!r}; known: {', '.join(KINDS)}")
