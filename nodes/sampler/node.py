"""FlowMatchingSampler and MMDiTSampler."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from ..comfyui.frontend import messages as ui
from ..comfyui.run import run_cache_key as reuse
from ..comfyui.run import sampling as host
from ..comfyui.run.guider import FlowGuider
from ..comfyui.run.run_cache import Kept
from ..comfyui.run.solver import Walk
from ..errors import InputError
from ..plots.canvas import as_image
from ..plots.curve import draw_curve
from ..widgets import NEGATIVE, POSITIVE, cfg_widget, check_values, steps_widget
from .checks import check_finite, check_inputs
from .inputs import APPENDED, DENOISE, LATENT, MODEL, SCHEDULE, SEED, SHIFT, solver_widget
from .plan import NODE, Plan, make_plan, why_nothing
from .report import bands_of, facts_of, short_of, words_of

METADATA = "mmdit_sampler"  # of what ran, in the PNG, beside the host's own "prompt" and "workflow"


class FlowMatchingSampler:
    """Samples by following the rectified flow's velocity with a choice of solver, schedule, shift and guidance."""

    CATEGORY = "MMDiT"
    DESCRIPTION = (
        "Samples SD3, SD3.5, FLUX and other flow-matching models. Solver, noise levels, shift and guidance in one "
        "node; masks, areas, ControlNet and hooks work as in KSampler. It tells what ran."
    )
    SEARCH_ALIASES = ["ksampler", "rectified flow", "sampler", "sd3 sampler", "shift", "cfg zero", "apg"]
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT", "IMAGE", "STRING")
    RETURN_NAMES = ("LATENT", "curve", "summary")
    OUTPUT_TOOLTIPS = (
        "The denoised latent, for VAE Decode.",
        "The noise levels, step by step, and when guidance and block controls act.",
        "What ran: model, solver, noise levels, model calls, what was skipped, time.",
    )

    def __init__(self) -> None:
        self._kept = Kept()  # the host keeps a node's object between runs

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "positive": POSITIVE,
                "negative": NEGATIVE,
                "latent_image": LATENT,
                "seed": SEED,
                "steps": steps_widget(28),
                "cfg": cfg_widget(4.5),
                "solver": solver_widget(),
                "schedule": SCHEDULE,
                "shift": SHIFT,
                "denoise": DENOISE,
            },
            "optional": APPENDED,
            "hidden": {"unique_id": "UNIQUE_ID", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def sample(
        self,
        model,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        cfg,
        solver,
        schedule,
        shift,
        denoise,
        unique_id=None,
        extra_pnginfo=None,
        **appended,
    ):
        dials = _read(
            seed=seed,
            steps=steps,
            cfg=cfg,
            solver=solver,
            schedule=schedule,
            shift=shift,
            denoise=denoise,
            **appended,
        )
        if not host.is_flow(model):
            raise InputError(
                NODE,
                "model",
                f"{type(model.model).__name__} is not a flow-matching model",
                "Connect SD3, SD3.5, FLUX or another rectified-flow model, or use KSampler",
            )
        samples = host.fitted(model, latent_image)
        check_inputs(NODE, model, positive, negative, samples)
        check_finite(NODE, positive=positive, negative=negative)
        plan = make_plan(model, positive, latent_image, samples, dials)
        if plan.route is None:
            nothing = f"Nothing was run: the latent is as it came. {why_nothing(plan, dials)}"
            ui.show_text(unique_id, nothing)
            return latent_image, _curve(plan, nothing), nothing
        kept, notes = self._open_kept(dials.reuse, model, positive, negative, plan)
        guider = FlowGuider(plan.model, positive, negative, plan.guidance)
        walk = Walk(plan.route, kept, guarded_by=NODE)
        samples = host.follow(guider, plan.prepared, walk, seed=seed)
        facts = facts_of(plan, walk, guider, notes)
        if extra_pnginfo is not None:
            extra_pnginfo.setdefault(METADATA, {})[str(unique_id)] = facts
        ui.show_text(unique_id, short_of(facts))
        latent = host.finish(latent_image, samples, host.left_at(walk, plan.prepared, samples))
        return latent, _curve(plan, facts["model"]), words_of(facts)

    def _open_kept(self, wanted: bool, model, positive, negative, plan: Plan) -> tuple[Kept | None, list[str]]:
        """What this run may take from the last one and leave for the next, and what is to be said about it."""
        reason = reuse.memory_of(model, positive, negative) if wanted else None
        if not wanted or reason is not None:
            self._kept = Kept()
            return None, [f"Reuse: not possible, {reason}"] if wanted else []
        route, prepared = plan.route, plan.prepared
        decided_by = (positive, negative, prepared.samples, prepared.noise, prepared.mask, plan.seeds.seed, plan.shift)
        key = reuse.key_of(
            model, *decided_by, route.solver, route.options, route.seeds, route.start, float(route.levels[0])
        )
        self._kept.open(model, key, reuse.pieces_of(plan.model, route, plan.guidance))
        return self._kept, []


def _read(**given) -> SimpleNamespace:
    """The inputs by name, each in its range, with defaults for those that were not given. Raises: InputError."""
    inputs = {**FlowMatchingSampler.INPUT_TYPES()["required"], **APPENDED}
    if unknown := set(given) - set(inputs):
        raise TypeError(f"{NODE} has no input {', '.join(sorted(unknown))}")
    check_values(NODE, inputs, given)
    return SimpleNamespace(**{name: options.get("default") for name, (_, options) in APPENDED.items()} | given)


def _curve(plan: Plan, about: str) -> torch.Tensor:
    """The drawing of a run as a host IMAGE: [1, H, W, 3] in [0, 1]."""
    levels = plan.levels[plan.first : plan.last + 1].tolist()
    steps = f"{max(0, len(levels) - 1)} steps of {plan.source}, shift {plan.shift:.3g}"
    return as_image(draw_curve(steps, about, levels, plan.first, bands_of(plan)))


class MMDiTSampler:
    """The host's samplers and schedulers, with this pack's checks and defaults that suit MMDiT models."""

    CATEGORY = "MMDiT"
    DESCRIPTION = "KSampler with defaults that suit SD3 and SD3.5, and errors that say what to change."
    SEARCH_ALIASES = ["ksampler", "sampler", "sd3 sampler"]
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)
    OUTPUT_TOOLTIPS = ("The denoised latent, for VAE Decode.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": MODEL,
                "positive": POSITIVE,
                "negative": NEGATIVE,
                "latent_image": LATENT,
                "seed": SEED,
                "steps": steps_widget(28),
                "cfg": cfg_widget(4.5),
                "sampler_name": (
                    host.sampler_names(),
                    {"default": "euler", "tooltip": "The host's sampling method."},
                ),
                "scheduler": (
                    host.scheduler_names(),
                    {"default": "simple", "tooltip": "The host's spread of noise levels."},
                ),
                "denoise": DENOISE,
            }
        }

    def sample(self, model, positive, negative, latent_image, seed, steps, cfg, sampler_name, scheduler, denoise):
        given = dict(seed=seed, steps=steps, cfg=cfg, sampler_name=sampler_name, scheduler=scheduler, denoise=denoise)
        check_values("MMDiTSampler", self.INPUT_TYPES()["required"], given)
        prepared = host.prepare(model, latent_image, seed)
        check_inputs("MMDiTSampler", model, positive, negative, prepared.samples)
        samples = host.sample_host(
            model,
            positive,
            negative,
            prepared,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
        )
        return (host.finish(latent_image, samples),)


NODES = {
    "FlowMatchingSampler": (FlowMatchingSampler, "Flow Matching Sampler"),
    "MMDiTSampler": (MMDiTSampler, "MMDiT Sampler (host samplers)"),
}
