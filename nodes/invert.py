"""FlowInvert: from a picture up to the noise that it could have grown from."""

from __future__ import annotations

from ..mmdit_core.flow.schedules import sigmas
from ..mmdit_core.solvers import SOLVERS
from .comfyui.frontend import messages as ui
from .comfyui.run import inversion
from .comfyui.run import resume as handover
from .comfyui.run import sampling as host
from .errors import InputError
from .sampler.checks import check_finite, check_inputs
from .sampler.inputs import SHIFT
from .widgets import check_values, steps_widget

NODE = "FlowInvert"
SOLVER_NAMES = ("leapfrog", "midpoint", "euler")
SEED = 0  # of the noise behind a noise mask: any will do, and the sampler takes it from the LATENT


class FlowInvert:
    """A picture's latent as noise, for Flow Matching Sampler to begin with."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Follows the model's flow backwards, from a picture to the noise that it grows from. Flow Matching Sampler "
        "takes the result as its noise: with the same prompt it gives the picture back, with another it edits it."
    )
    SEARCH_ALIASES = [
        "inversion",
        "unsample",
        "unsampler",
        "rf inversion",
        "edit",
        "reverse",
        "img2img",
        "ddim inversion",
    ]
    FUNCTION = "invert"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The picture as noise, for Flow Matching Sampler at denoise 1.",)

    @classmethod
    def INPUT_TYPES(cls):
        calls = "; ".join(f"{name} {SOLVERS[name].calls_per_step}" for name in SOLVER_NAMES)
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model whose flow is followed: SD3, SD3.5, FLUX, Qwen-Image."}),
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "What the picture shows. The better it says so, the better an edit keeps the rest."},
                ),
                "latent_image": (
                    "LATENT",
                    {"tooltip": "The picture, from VAE Encode. Under a noise mask only what it shows is inverted."},
                ),
                "steps": steps_widget(28),
                "solver": (
                    list(SOLVER_NAMES),
                    {
                        "default": SOLVER_NAMES[0],
                        "tooltip": "leapfrog finds back exactly; midpoint nearly, at twice the cost; euler roughly. "
                        "Sample with the same solver and steps. Model calls a step: " + calls + ".",
                    },
                ),
                "shift": SHIFT,
            },
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def invert(self, model, positive, latent_image, steps, solver, shift, unique_id=None):
        given = dict(steps=steps, solver=solver, shift=shift)
        check_values(NODE, self.INPUT_TYPES()["required"], given)
        if not host.is_flow(model):
            raise InputError(
                NODE,
                "model",
                f"{type(model.model).__name__} is not a flow-matching model",
                "Connect SD3, SD3.5, FLUX or another rectified-flow model",
            )
        prepared = self._prepare(model, positive, latent_image)
        own_shift = host.shift_of(model)
        levels = sigmas(steps, "linear", shift or own_shift).flip(0)
        end, calls = inversion.invert_flow(
            host.with_shift(model, shift) if shift else model,
            positive,
            prepared,
            solver=solver,
            levels=levels,
            guarded_by=NODE,
            flow=handover.flow_of(model, positive, levels, prepared.mask),
        )
        shift_said = f", shift {shift:g}" if shift else ""
        ui.show_text(
            unique_id,
            f"{calls} model calls. The same way back: {solver}, {steps} steps of linear{shift_said}, cfg 1, denoise 1.",
        )
        return (host.finish(latent_image, end.samples, end),)

    @staticmethod
    def _prepare(model, positive, latent) -> host.Prepared:
        """The picture as it fits the model. Raises: InputError for what is none, and for what the model cannot take."""
        samples = latent["samples"]
        if samples.is_nested:
            raise InputError(NODE, "latent_image", "it holds latents of several kinds", "Connect a picture's latent")
        if handover.unfinished(latent) is not None:
            raise InputError(
                NODE,
                "latent_image",
                "it comes from a run that ended early, so that it still holds noise",
                "Connect a finished picture's latent",
            )
        if not samples.isfinite().all():
            raise InputError(
                NODE, "latent_image", "it holds values that are not finite", "Look at the node that made this latent"
            )
        if not samples.any():
            raise InputError(
                NODE, "latent_image", "it is empty", "Connect a picture's latent, from VAE Encode or a sampler"
            )
        prepared = host.prepare(model, latent, SEED)
        check_inputs(NODE, model, positive, positive, prepared.samples)
        check_finite(NODE, positive=positive)
        return prepared


NODES = {"FlowInvert": (FlowInvert, "Flow Invert")}
