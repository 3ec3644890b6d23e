"""Speed plans: for each wanted speed-up a step cache of predictions, with the price that was measured for it, as data.

The prices come from `python -m benchmarks.frontier` (docs/frontier.json, docs/performance.md), on the small model that
ships; on other models the dials do the same work, but what they cost there has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..config import MMDiTConfig
from .step_cache import StepCache

MEASURED_ON = MMDiTConfig(
    hidden_size=128,
    num_heads=2,
    depth=8,
    context_dim=64,
    pooled_dim=64,
    pos_embed_max_size=24,
    qk_norm="rms",
)
SETTING = "28 steps of euler, cfg 4.5"
STEPS = 28


@dataclass(frozen=True)
class Price:
    """What a plan was measured to do.

    Fields: share of the full run's FLOPs that were executed; points, change of the share of pictures in which all
    attributes are right, against the full run with the same prompts and seeds, from low to high with 95% confidence;
    distance of the latents to the full run's, RMS, as a share of theirs; pictures, how many.
    """

    share: float
    points: float
    low: float
    high: float
    distance: float
    pictures: int


@dataclass(frozen=True)
class Plan:
    """A wanted speed-up, how it is reached, and its price, None where it was not measured."""

    speedup: float
    step_cache: StepCache
    price: Price | None = None


# In runs of fewer steps the same plan left whole pictures black.
_step_cache = partial(StepCache, meant_for=STEPS)
# Chosen on prompts of the set `seen`, priced on held-out ones. A line through the last two predictions overshoots where
# computed steps lie far apart: from 2x on the last one is kept.
PLANS = (
    Plan(1.2, _step_cache(every=2, warmup=0.3, tail=0.68), Price(0.822, 0.4, -0.5, 1.3, 0.02, 512)),
    Plan(1.5, _step_cache(every=2, warmup=0.14, tail=0.86), Price(0.644, 0.2, -0.9, 1.3, 0.025, 512)),
    Plan(2.0, _step_cache(every=3, warmup=0.14, tail=0.93, order=0), Price(0.466, -0.2, -1.6, 1.1, 0.04, 512)),
    Plan(2.5, _step_cache(every=4, warmup=0.14, tail=0.93, order=0), Price(0.395, -0.8, -2.3, 0.7, 0.059, 512)),
    Plan(3.0, _step_cache(every=6, warmup=0.14, tail=0.93, order=0), Price(0.323, -2.3, -4.3, -0.5, 0.112, 512)),
)
BY_SPEEDUP = {plan.speedup: plan for plan in PLANS}
