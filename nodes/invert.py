"""FlowInvert: from an image to the noise from which the model would make it."""

from __future__ import annotations

from typing import Any

from ..mmdit_core.flow.schedules import sigmas
from ..mmdit_core.solvers import SOLVERS
from .comfyui.frontend import messages
from .comfyui.run import inversion, resume, sampling
from .errors import require
from .sampler.checks import check_inputs, check_latent
from .sampler.start import refuse_unfinished
from .widgets import HIDDEN, SHIFT, check_values, choice, steps_widget

NODE = "FlowInvert"
SOLVER_NAMES = ("leapfrog", "midpoint", "euler")
SEED = 0  # of the noise outside a noise mask; any will do, because the sampler takes it from the LATENT


class FlowInvert:
    """An image's latent as noise, from which Flow Matching Sampler starts."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Follows the model's flow backwards, from an image to the noise from which the model would make it. Flow "
        "Matching Sampler takes the result as its noise. The same prompt gives the image back, another prompt edits it."
    )
    SEARCH_ALIASES = [
        "inversion", "unsample", "unsampler", "rf inversion", "edit", "reverse", "img2img", "ddim inversion",
    ]  # fmt: skip
    FUNCTION = "invert"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The image as noise, for Flow Matching Sampler at denoise 1.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs."""
        calls = "; ".join(f"{name} {SOLVERS[name].calls_per_step}" for name in SOLVER_NAMES)
        tooltips = {
            "positive": "A description of the image. The more exact it is, the better an edit keeps the rest.",
            "latent_image": "The image, from VAE Encode. With a noise mask only the part inside it is inverted.",
            "solver": "leapfrog finds the way back exactly, midpoint nearly and at twice the cost, euler roughly. "
            f"Sample with the same solver and steps. Model calls a step: {calls}.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model whose flow is followed: SD3, SD3.5, FLUX, Qwen-Image."}),
                "positive": ("CONDITIONING", {"tooltip": tooltips["positive"]}),
                "latent_image": ("LATENT", {"tooltip": tooltips["latent_image"]}),
                "steps": steps_widget(28),
                "solver": choice(SOLVER_NAMES, SOLVER_NAMES[0], tooltips["solver"]),
                "shift": SHIFT,
            },
            "hidden": HIDDEN,
        }

    def invert(self, model, positive, latent_image, steps, solver, shift, unique_id=None):
        """Run the inversion. Returns: LATENT with a resume state."""
        check_values(NODE, self.INPUT_TYPES()["required"], dict(steps=steps, solver=solver, shift=shift))
        check_latent(NODE, latent_image)
        refuse_unfinished(NODE, latent_image, "Connect a finished image's latent")
        right = "Connect an image's latent, from VAE Encode or a sampler"
        require(latent_image["samples"].any(), NODE, "latent_image", "it is empty", right)
        facts = sampling.read_model(model)
        prepared = sampling.prepare(sampling.fitted(model, latent_image), SEED)
        check_inputs(NODE, facts, positive, positive, prepared.samples)
        rising = sigmas(steps, "linear", shift or facts.shift).flip(0)
        end, calls = inversion.invert_flow(
            sampling.with_shift(model, shift) if shift else model,
            positive,
            prepared,
            solver=solver,
            sigmas=rising,
            node=NODE,
            flow=resume.flow_of(model, positive, rising, prepared.mask),
        )
        same = f"{solver}, {steps} steps of linear{f', shift {shift:g}' if shift else ''}, cfg 1, denoise 1"
        messages.show_text(unique_id, f"{calls} model calls. The same way back: {same}.")
        return (sampling.finish(latent_image, end.samples, end),)


NODES = {"FlowInvert": (FlowInvert, "Flow Invert")}
