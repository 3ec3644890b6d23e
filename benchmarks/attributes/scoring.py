"""Sample one image for each prompt and judge it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from attributes.judge import score
from training.render import BATCH, Clock, Renderer, Sampling

from .prompts import Prompt


class CallCounter:
    """A transformer with a count of its calls."""

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
    """Score prompts.

    Args: seeds, counted up from the sampling's; model, called instead of the transformer, see `Renderer.render`; label
        of the progress.
    Returns: the scores by seed and prompt; the first seed's images [B, H, W, 3].
    """
    clock = Clock(len(prompts) * seeds, label or f"{sampling.solver} {sampling.steps}, cfg {sampling.cfg:g}")
    scores, first = [], []
    for seed in range(sampling.seed, sampling.seed + seeds):
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            # The noise of a batch is a function of the seed and its index.
            settings = dataclasses.replace(sampling, seed=seed * 100_000 + start)
            images = renderer.render([prompt.text for prompt in part], settings, model)
            scores += [score(image, prompt.stated) for image, prompt in zip(images, part, strict=True)]
            if seed == sampling.seed:
                first.append(images)
            clock.tick(len(part))
    return scores, np.concatenate(first)


def table(summary: dict) -> str:
    """Format a summary as one line: percent and 95% interval by column."""
    return "  ".join(f"{name} {v['percent']:.1f} [{v['low']:.1f}, {v['high']:.1f}]" for name, v in summary.items())
