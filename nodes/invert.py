"""FlowInvert and SourcePull: from an image to its noise, and a pull back to the image in the sampling."""

from __future__ import annotations

from typing import Any

from ..mmdit_core.editing.rf_inversion import Pull
from ..mmdit_core.flow.schedules import sigmas
from ..mmdit_core.flow.window import Window
from ..mmdit_core.solvers import SOLVERS
from .comfyui.editing import inversion
from .comfyui.editing.source_pull import is_pulled, with_pull
from .comfyui.frontend import messages
from .comfyui.run import resume, sampling
from .errors import require
from .links import require_model
from .sampler.checks import check_inputs, check_latent
from .sampler.start import refuse_unfinished
from .widgets import END, HIDDEN, SHIFT, START, check_values, choice, fraction, number, seed_widget, steps_widget

NODE, PULL = "FlowInvert", "SourcePull"
SOLVER_NAMES = ("leapfrog", "midpoint", "euler", "fireflow")
SEED = 0  # of the noise outside a noise mask; any will do, because the sampler takes it from the LATENT


class FlowInvert:
    """An image's latent as noise, from which Flow Matching Sampler starts."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Follows the model's flow backwards, from an image to the noise from which the model would make it. Flow "
        "Matching Sampler takes the result as its noise. The same prompt gives the image back, another prompt edits it."
    )
    SEARCH_ALIASES = [
        "inversion", "unsample", "unsampler", "rf inversion", "rf edit", "edit", "reverse", "img2img",
        "ddim inversion", "mmdit", "反演", "编辑", "图像编辑",
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
            "solver": "leapfrog finds the way back exactly, midpoint nearly and at twice the cost, euler roughly, "
            "fireflow nearly at the cost of euler. Sample with the same solver and steps. Model calls a step: "
            f"{calls}.",
            "gamma": "0: the model's own flow. Higher: the noise is drawn to that of noise_seed, as in RF-Inversion: "
            "an edit is freer, and the way back is not exact. Use 0.5 with SourcePull in the sampling.",
            "noise_seed": "The seed of the noise that gamma draws to.",
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
            "optional": {
                "gamma": fraction(0.0, tooltips["gamma"], advanced=True),
                "noise_seed": seed_widget(tooltips["noise_seed"], control=False),
            },
            "hidden": HIDDEN,
        }

    def invert(self, model, positive, latent_image, steps, solver, shift, gamma=0.0, noise_seed=0, unique_id=None):
        """Run the inversion. Returns: LATENT with a resume state."""
        inputs = self.INPUT_TYPES()
        given = dict(steps=steps, solver=solver, shift=shift, gamma=gamma, noise_seed=noise_seed)
        given = check_values(NODE, {**inputs["required"], **inputs["optional"]}, given)
        steps, solver, shift, gamma, noise_seed = given.values()
        require_model(NODE, model)
        check_latent(NODE, latent_image)
        refuse_unfinished(NODE, latent_image, "Connect a finished image's latent")
        right = "Connect an image's latent, from VAE Encode or a sampler"
        require(latent_image["samples"].any(), NODE, "latent_image", "it is empty", right)
        found = "it has a Source Pull, which is for the sampling alone"
        require(not is_pulled(model), NODE, "model", found, "Connect the MODEL from before Source Pull")
        facts = sampling.read_model(model)
        found = f"{facts.kind} divides by sigma, and an inversion begins at sigma 0"
        require(not inversion.divides_by_sigma(model), NODE, "model", found, "Connect another rectified-flow model")
        fitted = sampling.fitted(model, latent_image)
        prepared = sampling.prepare(fitted, SEED)
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
            toward=sampling.prepare(fitted, noise_seed).noise if gamma else None,
            gamma=gamma,
        )
        same = f"{solver}, {steps} steps of linear{f', shift {shift:g}' if shift else ''}, cfg 1, denoise 1"
        back = f"The same way back: {same}" if not gamma else "No way back is exact: sample with Source Pull"
        messages.show_text(unique_id, f"{calls} model calls. {back}.")
        return (sampling.finish(latent_image, end.samples, end),)


class SourcePull:
    """A MODEL whose predictions are drawn to a source image for a part of the sampling."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "RF-Inversion's controller: while sampling, draws each predicted image to a source image. After Flow Invert "
        "with gamma it keeps the layout of the image, while another prompt changes the rest. Works with every sampler."
    )
    SEARCH_ALIASES = [
        "rf inversion", "rf edit", "eta", "controller", "structure", "edit", "img2img", "mmdit", "反演",
        "编辑", "保持结构",
    ]  # fmt: skip
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("A copy of the model with the controller.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs."""
        tooltips = {
            "model": "A rectified-flow model: SD3, SD3.5, FLUX, Qwen-Image. It is not changed.",
            "source_latent": "The image to stay close to: the latent that Flow Invert had.",
            "eta": "How strongly: 1 makes the prediction the source, 0 does nothing.",
            "decay": "0: eta stays the same inside the window. Higher: it falls toward the end of the sampling, as "
            "(1 - percent) to this power.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": tooltips["model"]}),
                "source_latent": ("LATENT", {"tooltip": tooltips["source_latent"]}),
                "eta": fraction(0.9, tooltips["eta"]),
                "decay": number(0.0, 0.0, 10.0, 0.1, tooltips["decay"]),
                "start_percent": START,
                "end_percent": fraction(0.25, END[1]["tooltip"]),
            }
        }

    def apply(self, model, source_latent, eta, decay, start_percent, end_percent):
        """A copy of the model with the controller. Raises: InputError."""
        given = dict(eta=eta, decay=decay, start_percent=start_percent, end_percent=end_percent)
        eta, decay, start_percent, end_percent = check_values(PULL, self.INPUT_TYPES()["required"], given).values()
        require_model(PULL, model)
        check_latent(PULL, source_latent, name="source_latent")
        refuse_unfinished(PULL, source_latent, "Connect the image's latent", name="source_latent")
        samples = sampling.fitted(model, source_latent)["samples"]
        right = "Connect an image's latent, from VAE Encode or a sampler"
        require(samples.any(), PULL, "source_latent", "it is empty", right)
        facts = sampling.read_model(model)
        found = f"{facts.kind} is not a flow-matching model"
        require(facts.is_flow, PULL, "model", found, "Connect SD3, SD3.5, FLUX or another rectified-flow model")
        found = f"{end_percent:g} is not after start_percent, {start_percent:g}"
        require(start_percent < end_percent, PULL, "end_percent", found, "Set it later")
        return (with_pull(model, samples, Pull(eta, decay, Window(start_percent, end_percent)), PULL),)


NODES = {NODE: (FlowInvert, "Flow Invert"), PULL: (SourcePull, "Source Pull")}
