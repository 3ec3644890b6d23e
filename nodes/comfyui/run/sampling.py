"""Sampling through ComfyUI's guider, so that areas, masks, hooks, LoRA schedules and inpainting keep working."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ....mmdit_core.config import MMDiTConfig
from ..families import Family, Sections, block_counts, family_of, network_of, sections_of
from ..frontend.progress import model_name
from ..loading.model import core_config
from . import resume
from .guidance import CFG_FUNCTION, Guidance, make_guider
from .noise import Seeds
from .solver import RunSteps, SolverRun

Latent = dict[str, Any]
Callback = Callable[..., None]  # (step, denoised, x, steps), instead of ComfyUI's progress bar and preview


@dataclass(frozen=True)
class PreparedLatent:
    """A LATENT as it fits the model: samples and noise [B, C, H, W], and the noise mask, if there is one."""

    samples: Tensor
    noise: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class ModelFacts:
    """What a sampler reads from a MODEL, once.

    Fields: kind, its class; name, with its file; is_flow, True if it predicts a rectified flow's velocity (SD3, FLUX,
    Qwen-Image, ...); shift, its own, after any shift node; config of our core, None for ComfyUI's models; text_width
    and channels, of the texts and latents that a known family takes, else None; blocks, double and single, None if no
    block hook reaches them; sections, the kinds of its blocks, (name, count) in order; has_guidance, True if another
    node's guidance is on it.
    """

    kind: str
    name: str
    is_flow: bool
    shift: float
    config: MMDiTConfig | None
    text_width: int | None
    channels: int | None
    blocks: tuple[int, int] | None
    sections: Sections
    has_guidance: bool


def read_model(model) -> ModelFacts:
    """Read a MODEL."""
    flow, family = model.get_model_object("model_sampling"), family_of(model.model)
    return ModelFacts(
        kind=type(model.model).__name__,
        name=model_name(model),
        is_flow=isinstance(flow, comfy.model_sampling.CONST),
        shift=shift_in(flow),
        config=core_config(model),
        text_width=None if family is None else _text_width(model, family),
        channels=None if family is None else latent_channels_of(model),
        blocks=block_counts(model.model),
        sections=sections_of(model.model),
        has_guidance=CFG_FUNCTION in model.model_options,
    )


def latent_channels_of(model) -> int | None:
    """The channels of a MODEL's latents; None if its format does not say it."""
    return getattr(model.get_model_object("latent_format"), "latent_channels", None)


def _text_width(model, family: Family) -> int | None:
    """The channels of the text that a network takes; None if another node replaced the layer that says it."""
    try:
        return family.width(network_of(model.model))
    except AttributeError:
        return None


def shift_in(sampling) -> float:
    """The shift of ComfyUI's model_sampling."""
    shift = float(getattr(sampling, "shift", 1.0))
    # FLUX's shift attribute is mu, the logarithm of the factor.
    return math.exp(shift) if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux) else shift


def with_shift(model, shift: float):
    """A clone of the MODEL with another shift.

    The shift is set on model_sampling, not on the schedule alone: percent windows are resolved with it.
    """
    clone = model.clone()
    original = model.get_model_object("model_sampling")
    clone.add_object_patch("model_sampling", shifted(original, model.model.model_config, shift))
    return clone


def shifted(original, model_config, shift: float):
    """ComfyUI's model_sampling with another shift."""
    patched = type(original)(model_config)
    if isinstance(original, comfy.model_sampling.ModelSamplingFlux):
        patched.set_parameters(shift=math.log(shift))
    else:
        patched.set_parameters(shift=shift, multiplier=original.multiplier)
    if hasattr(original, "noise_scale"):
        patched.set_noise_scale(original.noise_scale)
    return patched


def tokens_of(model, samples: Tensor) -> int:
    """The number of image tokens of a latent [B, C, ..., H, W]."""
    core, config, family = model.model.diffusion_model, core_config(model), family_of(model.model)
    known = family.patch if family is not None else None
    patch: Any = known or getattr(core, "patch_size", None) or getattr(config, "patch_size", 2)
    patch = patch if isinstance(patch, int) else patch[-1]
    return -(-samples.shape[-2] // patch) * -(-samples.shape[-1] // patch)


def pixels_of(model, samples: Tensor) -> int:
    """The number of pixels of the image that a latent [B, C, ..., H, W] encodes."""
    return samples.shape[-2] * samples.shape[-1] * model.get_model_object("latent_format").spacial_downscale_ratio ** 2


def fitted(model, latent: Latent) -> Latent:
    """A LATENT with its samples in the model's channels and, if they are empty, its scale."""
    ratios = (latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal"))
    return {**latent, "samples": comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)}


def prepare(latent: Latent, seed: int | Seeds, *, add_noise: bool = True) -> PreparedLatent:
    """A fitted latent with its noise, made on the CPU from the seed; zeros if none is to be added."""
    samples = latent["samples"]
    seeds = seed if isinstance(seed, Seeds) else Seeds(seed)
    noise = seeds.start_noise(samples, latent.get("batch_index")) if add_noise else torch.zeros_like(samples)
    return PreparedLatent(samples, noise, latent.get("noise_mask"))


def finish(latent: Latent, samples: Tensor, state: resume.ResumeState | None = None) -> Latent:
    """The output LATENT: the input LATENT with other samples.

    The input's marks of an empty latent and its resume state are no longer true and are removed.
    Args: state, if the run is not at its end.
    """
    marks = ("downscale_ratio_spacial", "downscale_ratio_temporal", resume.KEY)
    rest = {key: value for key, value in latent.items() if key not in marks}
    resumed = {} if state is None else {resume.KEY: state, resume.NOT_SAMPLED: None}
    return {**rest, "samples": samples, **resumed}


def call(prepared: PreparedLatent, model, sampler, sigmas: Tensor, callback: Callback | None = None) -> dict[str, Any]:
    """The arguments of `guider.sample`, but for the seed.

    Args: sampler, a `SolverRun` or a Sampler of ComfyUI's; sigmas [steps + 1].
    """
    return {
        "noise": prepared.noise,
        "latent_image": prepared.samples,
        "sampler": comfy.samplers.KSAMPLER(sampler) if isinstance(sampler, SolverRun) else sampler,
        "sigmas": sigmas.float(),
        "denoise_mask": prepared.mask,
        "callback": callback or latent_preview.prepare_callback(model, len(sigmas) - 1),
        "disable_pbar": callback is not None or not comfy.utils.PROGRESS_BAR_ENABLED,
    }


def first_image(latent: Latent) -> tuple[Latent, int]:
    """A LATENT with only its first image, and the number of its images."""
    batched = [name for name in ("samples", "noise_mask", "batch_index") if latent.get(name) is not None]
    return {**latent, **{name: latent[name][:1] for name in batched}}, latent["samples"].shape[0]


def sample_flow(model, positive, negative, prepared: PreparedLatent, **given: Any) -> Tensor:
    """The samples of `run_flow`. Args: given, as of `run_flow`."""
    return run_flow(model, positive, negative, prepared, **given)[0]


def run_flow(
    model,
    positive,
    negative,
    prepared: PreparedLatent,
    *,
    seed: int,
    cfg: float,
    solver: str,
    sigmas: Tensor,
    callback: Callback | None = None,
) -> tuple[Tensor, SolverRun]:
    """Run one of the core's solvers inside ComfyUI's guider, with the solver's default options.

    Args: sigmas [steps + 1], on the CPU.
    Returns: samples [B, C, H, W] on ComfyUI's intermediate device, and what was done.
    """
    run = SolverRun(RunSteps(solver, sigmas, Guidance(cfg), Seeds(seed).step_seeds(1, None)))
    guider = make_guider(model, positive, negative, run.steps.guidance)
    return to_output(guider.sample(**call(prepared, model, run, sigmas, callback), seed=seed)), run


def to_output(samples: Tensor) -> Tensor:
    """Samples on ComfyUI's intermediate device."""
    return samples.to(comfy.model_management.intermediate_device())


def sample_comfyui(model, positive, negative, prepared: PreparedLatent, *, steps: int, **given: Any) -> Tensor:
    """Run one of ComfyUI's own samplers and schedulers. Args: steps and given, KSampler's widgets by name."""
    return comfy.sample.sample(
        model,
        prepared.noise,
        steps,
        positive=positive,
        negative=negative,
        latent_image=prepared.samples,
        noise_mask=prepared.mask,
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        **given,
    )


def sampler_names() -> list[str]:
    """Names of ComfyUI's samplers."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """Names of ComfyUI's schedulers."""
    return list(comfy.samplers.KSampler.SCHEDULERS)
