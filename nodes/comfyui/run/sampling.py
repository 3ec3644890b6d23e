"""Sampling through the host's guider, so that areas, masks, hooks, LoRA schedules and inpainting keep working."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ..loading.model import core_config
from . import resume as handover
from .guider import FlowGuider, Guidance
from .noise import Seeds
from .resume import Unfinished
from .solver import Route, Walk

Latent = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A LATENT made ready: samples and noise [B, C, H, W] and the noise mask, if there is one."""

    samples: Tensor
    noise: Tensor
    mask: Tensor | None


def is_flow(model) -> bool:
    """Whether the MODEL predicts a rectified flow's velocity (SD3, FLUX, Qwen-Image, ...)."""
    return isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST)


def shift_of(model) -> float:
    """The MODEL's own schedule shift, after any ModelSamplingSD3 or ModelSamplingFlux node."""
    return shift_in(model.get_model_object("model_sampling"))


def shift_in(sampling) -> float:
    """The shift of a host model_sampling."""
    shift = float(getattr(sampling, "shift", 1.0))
    # FLUX states its shift as mu, the logarithm of the factor.
    return math.exp(shift) if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux) else shift


def with_shift(model, shift: float):
    """A clone of the MODEL with another shift.

    The shift is set on model_sampling, not only on the schedule: every window given in percent is read from there.
    """
    clone = model.clone()
    original = model.get_model_object("model_sampling")
    clone.add_object_patch("model_sampling", shifted(original, model.model.model_config, shift))
    return clone


def shifted(original, model_config, shift: float):
    """A host model_sampling with another shift."""
    patched = type(original)(model_config)
    if isinstance(original, comfy.model_sampling.ModelSamplingFlux):
        patched.set_parameters(shift=math.log(shift))
    else:
        patched.set_parameters(shift=shift, multiplier=original.multiplier)
    if hasattr(original, "noise_scale"):
        patched.set_noise_scale(original.noise_scale)
    return patched


def tokens_of(model, samples: Tensor) -> int:
    """Image tokens of a latent [B, C, ..., H, W]."""
    patch = getattr(model.model.diffusion_model, "patch_size", None) or getattr(core_config(model), "patch_size", 2)
    patch = patch if isinstance(patch, int) else patch[-1]
    return -(-samples.shape[-2] // patch) * -(-samples.shape[-1] // patch)


def pixels_of(model, samples: Tensor) -> int:
    """Pixels of the picture that a latent [B, C, ..., H, W] stands for."""
    return samples.shape[-2] * samples.shape[-1] * model.get_model_object("latent_format").spacial_downscale_ratio ** 2


def fitted(model, latent: Latent) -> Tensor:
    """A LATENT's samples in the model's channels and, for empty ones, its scale."""
    return comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )


def prepare(model, latent: Latent, seed: int | Seeds, *, add_noise: bool = True) -> Prepared:
    """The latent as it fits the model, and its noise, made on the CPU from the seed; zeros where none is added."""
    samples = fitted(model, latent)
    seeds = seed if isinstance(seed, Seeds) else Seeds(seed)
    noise = seeds.of_start(samples, latent.get("batch_index")) if add_noise else torch.zeros_like(samples)
    return Prepared(samples, noise, latent.get("noise_mask"))


def finish(latent: Latent, samples: Tensor, left: Unfinished | None = None) -> Latent:
    """The LATENT that goes out: what came in with other samples; marks of an empty or unfinished latent are gone.

    Args: left, where the run stands, if it is not at its end.
    """
    marks = ("downscale_ratio_spacial", "downscale_ratio_temporal", handover.KEY)
    rest = {key: value for key, value in latent.items() if key not in marks}
    return {**rest, "samples": samples, **({handover.KEY: left} if left is not None else {})}


def sample_flow(
    model,
    positive,
    negative,
    prepared: Prepared,
    *,
    seed: int,
    cfg: float,
    solver: str,
    sigmas: Tensor,
    callback: Callable[..., None] | None = None,
) -> Tensor:
    """Run one of the core's solvers inside the host's guider, with the solver's defaults.

    Args: sigmas [steps + 1] on the CPU; callback(step, denoised, x, steps), in place of the host's progress bar and
        preview, for a node that samples many times and shows its own.
    Returns: [B, C, H, W] on the host's intermediate device.
    """
    route = Route(solver, sigmas, Seeds(seed).of_steps(1, None))
    guider = FlowGuider(model, positive, negative, Guidance(cfg))
    return follow(guider, prepared, Walk(route), seed=seed, callback=callback)


def follow(
    guider: FlowGuider, prepared: Prepared, walk: Walk, *, seed: int, callback: Callable[..., None] | None = None
) -> Tensor:
    """Walk a route with a guider. Args and return value as `sample_flow`'s."""
    levels, model = walk.route.levels, guider.model_patcher
    samples = guider.sample(
        prepared.noise,
        prepared.samples,
        comfy.samplers.KSAMPLER(walk),
        levels.float(),
        denoise_mask=prepared.mask,
        callback=callback or latent_preview.prepare_callback(model, len(levels) - 1),
        disable_pbar=callback is not None or not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return samples.to(comfy.model_management.intermediate_device())


def resumed(prepared: Prepared, start: Unfinished) -> Prepared:
    """The noise and picture that an unfinished run began with, under the mask that came in."""
    return replace(prepared, samples=start.image, noise=start.noise)


def left_at(walk: Walk, prepared: Prepared, samples: Tensor) -> Unfinished | None:
    """What a run hands on where it ended before sigma 0. Args: samples, as they go out."""
    level, end = float(walk.route.levels[-1]), walk.end
    if level == 0 or end is None:
        return None
    return Unfinished(
        samples=samples.cpu(),
        sigma=level,
        x=end.x,
        noise=prepared.noise,
        image=prepared.samples,
        solver=walk.route.solver,
        history=end.history,
        seeds=walk.route.seeds,
        states=end.generators,
    )


def sample_host(
    model, positive, negative, prepared: Prepared, *, seed, steps, cfg, sampler_name, scheduler, denoise
) -> Tensor:
    """The host's own samplers and schedulers."""
    return comfy.sample.sample(
        model,
        prepared.noise,
        steps,
        cfg,
        sampler_name,
        scheduler,
        positive,
        negative,
        prepared.samples,
        denoise=denoise,
        noise_mask=prepared.mask,
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def sampler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)
