"""FlowMatchingSampler and MMDiTSampler."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..comfyui.frontend import messages
from ..comfyui.run import nan_check, sampling
from ..comfyui.run.guidance import make_guider
from ..comfyui.run.run_cache import RunCache
from ..comfyui.run.solver import SolverRun
from ..links import require_model
from ..widgets import NEGATIVE, POSITIVE, cfg_widget, check_values, choice, steps_widget
from .checks import check_inputs, check_latent
from .inputs import DENOISE, LATENT, MODEL, NODE, REQUIRED, SEED, WIDGETS, SamplerInputs
from .plan import make_plan
from .report import curve, make_report, short, summary
from .start import refuse_unfinished, way_back_notes

METADATA = "mmdit_sampler"  # of the report in a PNG, next to ComfyUI's own "prompt" and "workflow"
LINKS = {"model": MODEL, "positive": POSITIVE, "negative": NEGATIVE, "latent_image": LATENT}


class FlowMatchingSampler:
    """Samples along a rectified flow with a choice of solver, schedule, shift and guidance."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Samples SD3, SD3.5, FLUX and other flow-matching models. Solver, sigmas, shift and guidance in one node. "
        "Masks, areas, ControlNet and hooks work as in KSampler. Reports what was run."
    )
    SEARCH_ALIASES = [
        "ksampler", "rectified flow", "sampler", "sd3 sampler", "flux", "qwen image", "mmdit", "shift",
        "cfg zero", "apg", "采样", "采样器", "整流流",
    ]  # fmt: skip
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT", "IMAGE", "STRING")
    RETURN_NAMES = ("LATENT", "curve", "summary")
    OUTPUT_TOOLTIPS = (
        "The denoised latent, for VAE Decode.",
        "A plot of the sigmas by step, and of the steps in which guidance and block controls act.",
        "What was run: model, solver, sigmas, model calls, what was skipped, time.",
    )

    def __init__(self) -> None:
        self._cache = RunCache()  # ComfyUI keeps a node's object between runs

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs: links, the required widgets, then those that were added later."""
        return {
            "required": {**LINKS, **{name: WIDGETS[name] for name in REQUIRED}},
            "optional": {name: made for name, made in WIDGETS.items() if name not in REQUIRED},
            "hidden": {"unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def sample(self, model, positive, negative, latent_image, *, unique_id=None, extra_pnginfo=None, **given):
        """Run the sampler. Args: given, the fields of SamplerInputs. Returns: LATENT, curve, summary."""
        inputs = SamplerInputs(**given)
        plan = make_plan(model, positive, negative, latent_image, inputs)
        if plan.steps is None:
            nothing = f"Nothing was run: the latent is unchanged. {plan.why_nothing}"
            messages.show_text(unique_id, nothing)
            return latent_image, curve(plan, nothing), nothing
        no_reuse = None
        if inputs.reuse:
            no_reuse = self._cache.open(model, plan.model, (positive, negative), plan.prepared, plan.steps, inputs.seed)
        else:
            self._cache.close()
        run = SolverRun(plan.steps, self._cache, node=NODE)
        guider = make_guider(plan.model, positive, negative, plan.steps.guidance)
        call = sampling.call(plan.prepared, model, run, plan.steps.sigmas)
        samples = sampling.to_output(guider.sample(**call, seed=inputs.seed))
        notes = way_back_notes(model.model, plan.steps.start, samples, float(plan.steps.sigmas[-1]))
        report = make_report(plan, run, no_reuse, notes)
        if extra_pnginfo is not None:
            extra_pnginfo.setdefault(METADATA, {})[str(unique_id)] = asdict(report)
        messages.show_text(unique_id, short(report))
        prepared = plan.prepared
        state = run.resume_state(model, samples, prepared.noise, prepared.samples, latent_image.get("noise_mask"))
        return sampling.finish(latent_image, samples, state), curve(plan, plan.facts.name), summary(report)


class MMDiTSampler:
    """ComfyUI's samplers and schedulers, with this pack's checks and defaults that suit MMDiT models."""

    CATEGORY = "MMDiT"
    DESCRIPTION = "KSampler with defaults that suit SD3 and SD3.5, and errors that say what to change."
    SEARCH_ALIASES = ["ksampler", "sampler", "sd3 sampler", "flux", "mmdit", "采样", "采样器"]
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent, for VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs, as KSampler's."""
        return {
            "required": {
                **LINKS,
                "seed": SEED,
                "steps": steps_widget(28),
                "cfg": cfg_widget(4.5),
                "sampler_name": choice(sampling.sampler_names(), "euler", "ComfyUI's sampling method."),
                "scheduler": choice(sampling.scheduler_names(), "simple", "ComfyUI's spacing of the sigmas."),
                "denoise": DENOISE,
            }
        }

    def sample(self, model, positive, negative, latent_image, **given):
        """Run the sampler. Args: given, the values of the widgets. Returns: LATENT."""
        given = check_values("MMDiTSampler", self.INPUT_TYPES()["required"], given)
        require_model("MMDiTSampler", model)
        check_latent("MMDiTSampler", latent_image, one_kind=False)
        refuse_unfinished("MMDiTSampler", latent_image, "Continue it with Flow Matching Sampler and its start_step")
        prepared = sampling.prepare(sampling.fitted(model, latent_image), given["seed"])
        check_inputs("MMDiTSampler", sampling.read_model(model), positive, negative, prepared.samples, flow=False)
        samples = sampling.sample_comfyui(model, positive, negative, prepared, **given)
        if not samples.is_nested and not nan_check.is_finite(samples):
            found = "MMDiTSampler: the run gives a value that is not finite"
            raise nan_check.NotFiniteError(f"{found}. {nan_check.REMEDY}")
        return (sampling.finish(latent_image, samples),)


NODES = {
    "FlowMatchingSampler": (FlowMatchingSampler, "Flow Matching Sampler"),
    "MMDiTSampler": (MMDiTSampler, "MMDiT Sampler (ComfyUI samplers)"),
}
