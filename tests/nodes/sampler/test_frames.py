"""How many frames of this pack are between FlowMatchingSampler and the attention: each is one more layer to read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
OURS = tuple(f"{ROOT / name}/" for name in ("nodes", "mmdit_core"))


def frames(bench, model, **changed) -> list[str]:
    """The functions of ours on the stack inside the attention, of the call with the most, the sampler's node first."""
    found: list[list[str]] = []

    def attention(func, *args, **kwargs):
        names, frame = [], sys._getframe()
        while frame is not None:
            if frame.f_code.co_filename.startswith(OURS):
                names.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}")
            frame = frame.f_back
        found.append(names[::-1])
        return func(*args, **kwargs)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = attention
    bench.run(model=watched, **changed)
    deepest = max(found, key=len)
    assert deepest[0] == "node.FlowMatchingSampler.sample"
    return deepest


def boosted(bench):
    given = dict(blocks="all", strength=2.0, mode="attention", phrase="", part="all", branch="both", fade="constant")
    return bench.module("control").TextBoost().apply(bench.model, **given, start_percent=0.0, end_percent=1.0)[0]


def with_plan(bench, model):
    return bench.module("caching").SpeedPlan().apply(model, "2x")[0]


def test_a_plain_run_has_ten_frames_at_most(bench):
    names = frames(bench, bench.model)
    assert len(names) <= 10, "\n".join(names)


@pytest.mark.parametrize("inputs", [{"cfg_end": 0.5}, {"cfg_curve": "rising"}, {"reuse": True}, {"guidance": "apg"}])
def test_an_option_of_the_sampler_adds_no_frame(bench, inputs):
    assert frames(bench, bench.model, **inputs) == frames(bench, bench.model)


def test_a_boost_and_a_step_cache_add_four_frames_at_most(bench):
    names = frames(bench, with_plan(bench, boosted(bench)), steps=20)
    assert len(names) <= 14, "\n".join(names)
