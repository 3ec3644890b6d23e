"""SpeedPlan: a speed-up as a node, with what it computes and its measured cost."""

from __future__ import annotations

from dataclasses import asdict

from ..mmdit_core.caching.plans import BY_SPEEDUP, MEASURED_ON, SETTING, STEPS, Plan
from ..mmdit_core.caching.step_cache import StepCache
from .comfyui import patching
from .comfyui.frontend import messages
from .comfyui.loading.model import core_config
from .widgets import HIDDEN, check_values, choice

NODE = "SpeedPlan"
OFF = "1x (off)"
CHOICES: dict[str, Plan | None] = {OFF: None, **{f"{speedup:g}x": plan for speedup, plan in BY_SPEEDUP.items()}}
MEASURED_COSTS = {
    name: {"work": plan.step_cache.work(STEPS), "steps": STEPS, **asdict(plan.cost)}
    for name, plan in CHOICES.items()
    if plan is not None and plan.cost is not None
}
ORDINALS = {2: "2nd", 3: "3rd"}


class SpeedPlan:
    """A node that attaches a step cache, chosen by its speed-up."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Makes sampling faster: some steps compute nothing, and their predictions are extrapolated from earlier steps. "
        "Shows the measured cost where there is one. Works with FlowMatchingSampler, KSampler and other samplers. "
        "After the run the node shows how much was computed."
    )
    SEARCH_ALIASES = ["speed", "faster", "cache", "skip steps", "acceleration", "turbo"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "plan")
    OUTPUT_TOOLTIPS = (
        "A copy of the model with this plan. It replaces a plan that the model had.",
        "What is computed, what is extrapolated, and the measured cost.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        model = "Any model; the measured cost is that of the small model. The input is not changed."
        speedup = (
            "How much faster. A higher speed-up computes fewer steps; the first and last steps are always computed. "
            "The node shows the measured cost."
        )
        return {
            "required": {
                "model": ("MODEL", {"tooltip": model}),
                # The frontend shows measured_costs on the node.
                "speedup": choice(tuple(CHOICES), "1.5x", speedup, measured_costs=MEASURED_COSTS),
            },
            "hidden": HIDDEN,
        }

    def apply(self, model, speedup, unique_id=None):
        """A copy of the model with a step cache, and the plan in words."""
        check_values(NODE, self.INPUT_TYPES()["required"], {"speedup": speedup})
        plan = CHOICES[speedup]
        said = "Off: everything is computed." if plan is None else summary(plan, core_config(model) == MEASURED_ON)
        messages.show_text(unique_id, said)
        step_cache = StepCache() if plan is None else plan.step_cache
        return patching.attach(model, [step_cache], unique_id), said


def summary(plan: Plan, is_measured_model: bool) -> str:
    """What a plan computes, its speed-up and its cost, in lines."""
    step_cache, work = plan.step_cache, plan.step_cache.work(STEPS)
    every = ORDINALS.get(step_cache.every, f"{step_cache.every}th")
    computed = (
        f"The first {step_cache.warmup:.0%} and the last {1 - step_cache.tail:.0%} of the steps are computed; between, "
        f"every {every} step is computed and the others are extrapolated"
    )
    speed = f"{work:.0%} of the predictions over {STEPS} steps: up to {1 / work:.2f} times as fast"
    return "\n".join((computed, speed, cost(plan, is_measured_model)))


def cost(plan: Plan, is_measured_model: bool) -> str:
    """The measured cost of a plan, and of which model it is."""
    if plan.cost is None:
        return "Its cost has not been measured"
    measured = (
        f"{plan.cost.points:+.1f} points of images right in every attribute ({plan.cost.low:+.1f} to "
        f"{plan.cost.high:+.1f}, {plan.cost.images} images, {SETTING})"
    )
    if is_measured_model:
        return f"Measured on this model: {measured}"
    return f"Measured on the small model only: {measured}. The cost on this model is not known"


NODES = {NODE: (SpeedPlan, "Speed Plan")}
