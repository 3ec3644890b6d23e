"""SpeedPlan, with what it computes and its measured cost; PrecomputeModulation, with what it spares."""

from __future__ import annotations

from dataclasses import asdict

from ..mmdit_core.caching.plans import BY_SPEEDUP, MEASURED_ON, SETTING, STEPS, Plan
from ..mmdit_core.caching.step_cache import StepCache
from .comfyui import patching
from .comfyui.frontend import messages
from .comfyui.loading.model import core_config
from .comfyui.loading.offloading import load_last
from .comfyui.modulation import MEMORY_MB, PrecomputedModulation, layers_of, names_last, weights_of, why_none
from .links import require_model
from .widgets import HIDDEN, check_values, choice

NODE, PRECOMPUTE = "SpeedPlan", "PrecomputeModulation"
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
    SEARCH_ALIASES = [
        "speed", "faster", "cache", "teacache", "easycache", "first block cache", "skip steps", "acceleration",
        "turbo", "mmdit", "加速", "缓存",
    ]  # fmt: skip
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
        require_model(NODE, model)
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


class PrecomputeModulation:
    """A node that attaches a table of modulation rows."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Spares up to a third of the model's weights while sampling: the layers that turn the timestep into shifts and "
        "scales are computed once for the whole schedule, and the steps read their results. The image stays the same. "
        "For KSampler and other samplers; FlowMatchingSampler does it by itself."
    )
    SEARCH_ALIASES = ["adaln", "modulation", "low vram", "memory", "offload", "mmdit", "调制", "显存"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("MODEL", "report")
    OUTPUT_TOOLTIPS = (
        "A copy of the model that computes its modulation ahead.",
        "Which layers, their fraction of the weights, and the memory of a step; or why there is no table.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        """The node's widgets."""
        limit = (
            "Memory of the table on the GPU. Where it does not hold all steps, it holds as many as fit, and the layers "
            "are read again for the next ones."
        )
        model = "FLUX.1, Qwen-Image or another model with large modulation. It is not changed."
        return {
            "required": {"model": ("MODEL", {"tooltip": model})},
            "optional": {
                "memory_limit_mb": (
                    "INT",
                    {"default": MEMORY_MB, "min": 1, "max": 65536, "tooltip": limit, "advanced": True},
                )
            },
            "hidden": HIDDEN,
        }

    def apply(self, model, memory_limit_mb=MEMORY_MB, unique_id=None):
        """A copy of the model with the table, and what it spares in words; the model itself if there is no table."""
        require_model(PRECOMPUTE, model)
        given = {"memory_limit_mb": memory_limit_mb}
        memory_limit_mb = check_values(PRECOMPUTE, self.INPUT_TYPES()["optional"], given)["memory_limit_mb"]
        base = model.model
        reason = why_none(base)
        if reason:
            said = f"Unchanged: {reason}."
            messages.show_text(unique_id, said)
            return model, said
        sizes = weights_of(base.diffusion_model, layers_of(base))
        itemsize = base.get_dtype_inference().itemsize
        said = (
            f"{sizes.count} modulation layers ({', '.join(names_last(base)[:2])}, ...) hold {sizes.fraction:.1%} of "
            f"the weights. A step's row is {sizes.row * itemsize / 1e6:.2f} MB; the table holds at most "
            f"{memory_limit_mb} MB."
        )
        messages.show_text(unique_id, said)
        return load_last(patching.attach(model, [PrecomputedModulation(memory_limit_mb)], unique_id)), said


NODES = {
    NODE: (SpeedPlan, "Speed Plan"),
    PRECOMPUTE: (PrecomputeModulation, "Precompute Modulation"),
}
