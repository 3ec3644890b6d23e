"""PrecomputeModulation: the modulation of a run computed ahead of its steps, with what it spares."""

from __future__ import annotations

from .comfyui import patching
from .comfyui.frontend import messages
from .comfyui.loading.offloading import load_last
from .comfyui.modulation import MEMORY_MB, PrecomputedModulation, layers_of, names_last, weights_of, why_none
from .widgets import HIDDEN, check_values

NODE = "PrecomputeModulation"


class PrecomputeModulation:
    """A node that attaches a table of modulation rows."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Spares up to a third of the model's weights while sampling: the layers that turn the timestep into shifts and "
        "scales are computed once for the whole schedule, and the steps read their results. The image stays the same. "
        "For KSampler and other samplers; FlowMatchingSampler does it by itself."
    )
    SEARCH_ALIASES = ["adaln", "modulation", "low vram", "memory", "offload"]
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
        check_values(NODE, self.INPUT_TYPES()["optional"], {"memory_limit_mb": memory_limit_mb})
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


NODES = {NODE: (PrecomputeModulation, "Precompute Modulation")}
