"""Speed plans as data: for each speed-up a step cache and its measured cost.

The costs come from `python -m benchmarks.frontier` (docs/frontier.json, docs/performance.md), on the small model that
ships. On other models the plans save the same work; their cost there has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..config import MMDiTConfig
from .step_cache import StepCache

MEASURED_ON = MMDiTConfig(
    hidden_size=128, num_heads=2, depth=8, context_dim=64, pooled_dim=64, pos_embed_max_size=24, qk_norm="rms"
)
SETTING = "28 steps of euler, cfg 4.5"
STEPS = 28


@dataclass(frozen=True)
class MeasuredCost:
    """What a plan was measured to do, against full runs with the same prompts and seeds.

    Fields: flops, executed, as a fraction of the full run's; points, change in percent of images with all attributes
    right, from low to high with 95% confidence; images, how many.
    """

    flops: float
    points: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class Plan:
    """A speed-up, the step cache that reaches it, and its cost, None if it was not measured."""

    speedup: float
    step_cache: StepCache
    cost: MeasuredCost | None = None


_cache = partial(StepCache, meant_for=STEPS)  # without meant_for, runs of fewer steps gave black images
# Chosen on prompts of the set `seen`, measured on held-out ones. From 2x on the last prediction is repeated: a line
# overshoots if the computed steps are far apart.
PLANS = (
    Plan(1.2, _cache(every=2, warmup=0.3, tail=0.68), MeasuredCost(0.822, 0.4, -0.5, 1.3, 512)),
    Plan(1.5, _cache(every=2, warmup=0.14, tail=0.86), MeasuredCost(0.644, 0.2, -0.9, 1.3, 512)),
    Plan(2.0, _cache(every=3, warmup=0.14, tail=0.93, order=0), MeasuredCost(0.466, -0.2, -1.6, 1.1, 512)),
    Plan(2.5, _cache(every=4, warmup=0.14, tail=0.93, order=0), MeasuredCost(0.395, -0.8, -2.3, 0.7, 512)),
    Plan(3.0, _cache(every=6, warmup=0.14, tail=0.93, order=0), MeasuredCost(0.323, -2.3, -4.3, -0.5, 512)),
)
BY_SPEEDUP = {plan.speedup: plan for plan in PLANS}
