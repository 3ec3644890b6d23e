"""Render prompts and judge each picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from attributes.judge import score
from training.render import BATCH, Clock, Renderer, Sampling

from .prompts import Prompt


class Counted:
    """A transformer that counts its calls."""

    def __init__(self, model: Callable):
        self.model, self.calls = model, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.model(*args, **kwargs)


def score_prompts(
    renderer: Renderer,
    sampling: Sampling,
    prompts: Sequence[Prompt],
    *,
    seeds: int = 1,
    model: Callable | None = None,
    label: str = "",
) -> tuple[list[dict[str, bool]], np.ndarray]:
    """Scores of every picture, seed after seed in the prompts' order, and the first seed's pictures.

    Args: model stands in for the transformer, see `Renderer.render`.
    """
    clock = Clock(len(prompts) * seeds, label or f"{sampling.solver} {sampling.steps}, cfg {sampling.cfg:g}")
    scores, first = [], []
    for seed in range(sampling.seed, sampling.seed + seeds):
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            # Each batch has noise of its own, a fixed function of the seed and the place in the list.
            settings = dataclasses.replace(sampling, seed=seed * 100_000 + start)
            pictures = renderer.render([prompt.text for prompt in part], settings, model)
            scores += [score(picture, prompt.scene) for picture, prompt in zip(pictures, part, strict=True)]
            if seed == sampling.seed:
                first.append(pictures)
            clock.tick(len(part))
    return scores, np.concatenate(first)


def table(summary: dict) -> str:
    """One line of a summary: percent and 95% interval by column."""
    return "  ".join(f"{name} {v['percent']:.1f} [{v['low']:.1f}, {v['high']:.1f}]" for name, v in summary.items())
