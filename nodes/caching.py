"""SpeedPlan: a wanted speed-up as a node, with what it sets and what that was measured to cost."""

from __future__ import annotations

from dataclasses import asdict

from ..mmdit_core.caching.plans import BY_SPEEDUP, MEASURED_ON, SETTING, STEPS, Plan
from ..mmdit_core.caching.step_cache import StepCache
from .comfyui import step_cache as host
from .comfyui.loading.model import core_config
from .errors import InputError

NODE = "SpeedPlan"
OFF = "1x (off)"
CHOICES: dict[str, Plan | None] = {OFF: None, **{f"{speedup:g}x": plan for speedup, plan in BY_SPEEDUP.items()}}
PRICES = {
    name: {"work": plan.step_cache.work(STEPS), "steps": STEPS, **asdict(plan.price)}
    for name, plan in CHOICES.items()
    if plan is not None and plan.price is not None
}
ORDINALS = {2: "2nd", 3: "3rd"}


class SpeedPlan:
    """Fewer predictions for a picture, chosen by how much faster it is to be."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Makes sampling faster: in some steps nothing is computed, the prediction goes on from those before. It says "
        "what that costs where it was measured. Works with FlowMatchingSampler, KSampler and other samplers; after the "
        "run the node shows what was saved."
    )
    SEARCH_ALIASES = ["speed", "faster", "cache", "skip steps", "acceleration", "turbo"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "plan")
    OUTPUT_TOOLTIPS = (
        "The model with this plan in place of one that it had; the one that came in is as it was.",
        "What is computed and what is carried over, and what that costs where it was measured.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": (
                    "MODEL",
                    {"tooltip": "Any model; prices are known for the small one. It is not changed."},
                ),
                "speedup": (
                    list(CHOICES),
                    {
                        "default": "1.5x",
                        "tooltip": "How much faster. The higher, the fewer steps are computed, those at the start and "
                        "the end always. The node says what it costs.",
                        "prices": PRICES,  # for the page
                    },
                ),
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def apply(self, model, speedup, unique_id=None):
        if speedup not in CHOICES:
            raise InputError(NODE, "speedup", f"{speedup!r} is unknown", f"Choose of {', '.join(CHOICES)}")
        plan = CHOICES[speedup]
        if plan is None:
            said = "Off: everything is computed."
            host.ui.show_text(unique_id, said)
            return host.attach(model, StepCache(), unique_id), said
        said = words_of(plan, core_config(model) == MEASURED_ON)
        host.ui.show_text(unique_id, said)
        return host.attach(model, plan.step_cache, unique_id), said


def words_of(plan: Plan, is_measured_model: bool) -> str:
    """What a plan sets, how much faster that is, and its price."""
    work = plan.step_cache.work(STEPS)
    return "\n".join(
        [
            dials_of(plan.step_cache),
            f"{work:.0%} of the predictions over {STEPS} steps: up to {1 / work:.2f} times as fast",
            price_of(plan, is_measured_model),
        ]
    )


def dials_of(step_cache: StepCache) -> str:
    """What a step cache computes and what it carries over."""
    parts = []
    if step_cache.warmup > 0:
        parts.append(f"the first {step_cache.warmup:.0%} of the steps in full")
    if step_cache.tail < 1:
        parts.append(
            f"the last {1 - step_cache.tail:.0%} too" if parts else f"the last {1 - step_cache.tail:.0%} in full"
        )
    if step_cache.every > 1:
        parts.append(
            f"between, every {_ordinal(step_cache.every)} step is computed, the others go on from those before"
        )
    if step_cache.uncond_every > 1:
        of = "computed step" if step_cache.every > 1 else "step"
        parts.append(
            f"the negative prompt in every {_ordinal(step_cache.uncond_every)} {of}, elsewhere its distance to the "
            "positive is carried over"
        )
    if step_cache.has_window:
        parts.append(f"guidance from {step_cache.start:.0%} to {step_cache.end:.0%} of the sampling")
    text = "; ".join(parts) or "everything is computed"
    return text[0].upper() + text[1:]


def price_of(plan: Plan, is_measured_model: bool) -> str:
    """The price in words, and on which model it was measured."""
    price = plan.price
    if price is None:
        return "What it costs has not been measured"
    paid = (
        f"{price.points:+.1f} points of pictures right in everything ({price.low:+.1f} to {price.high:+.1f}, "
        f"{price.pictures} pictures, {SETTING})"
    )
    if is_measured_model:
        return f"Measured on this model: {paid}"
    return f"Measured on the small model only: {paid}. What it costs on this model is not known"


def _ordinal(number: int) -> str:
    return ORDINALS.get(number, f"{number}th")


NODES = {NODE: (SpeedPlan, "Speed Plan")}
