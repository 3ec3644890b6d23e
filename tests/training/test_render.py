"""Sampling without ComfyUI: where guidance stops."""

from __future__ import annotations

import pytest

from scripts.environment import ROOT
from scripts.installations import find
from training.render import Renderer, Sampling


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(ROOT / "models" / "mmdit-small.safetensors", find().folder)


@pytest.mark.parametrize(
    ("cfg", "cfg_end", "rows"),
    [(4.5, 1.0, [2, 2, 2, 2]), (4.5, 0.5, [2, 2, 1, 1]), (4.5, 0.0, [1, 1, 1, 1]), (1.0, 1.0, [1, 1, 1, 1])],
)
def test_the_negative_prompt_is_computed_until_guidance_stops(renderer, cfg, cfg_end, rows):
    calls = []

    def counting(x, *args, **kwargs):
        calls.append(len(x))
        return renderer.model(x, *args, **kwargs)

    sampling = Sampling(steps=4, cfg=cfg, cfg_end=cfg_end, width=64, height=64)
    image = renderer.render(["a red circle"], sampling, counting)
    assert calls == rows and image.shape == (1, 64, 64, 3)
