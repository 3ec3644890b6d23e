"""Sampling through the host's guider, so that areas, masks, hooks, LoRA schedules and inpainting keep working."""

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

from ...mmdit_core.solvers import solve

Latent = dict[str, Any]

STEP_NOISE = 0x5DE0_5EED_0000_0001  # parts the noise of stochastic steps from the starting noise of every near seed


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
    sampling = model.get_model_object("model_sampling")
    shift = float(getattr(sampling, "shift", 1.0))
    # FLUX states its shift as mu, the logarithm of the factor.
    return math.exp(shift) if isinstance(sampling, comfy.model_sampling.ModelSamplingFlux) else shift


def with_shift(model, shift: float):
    """A clone of the MODEL with another shift.

    The shift is set on model_sampling, not only on the schedule: every window given in percent is read from there.
    """
    original = model.get_model_object("model_sampling")
    patched = type(original)(model.model.model_config)
    if isinstance(original, comfy.model_sampling.ModelSamplingFlux):
        patched.set_parameters(shift=math.log(shift))
    else:
        patched.set_parameters(shift=shift, multiplier=original.multiplier)
    if hasattr(original, "noise_scale"):
        patched.set_noise_scale(original.noise_scale)
    clone = model.clone()
    clone.add_object_patch("model_sampling", patched)
    return clone


def prepare(model, latent: Latent, seed: int) -> Prepared:
    """The latent in the model's channels and, for empty ones, its scale; noise made on the CPU from the seed."""
    samples = comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        latent.get("downscale_ratio_spacial"),
        latent.get("downscale_ratio_temporal"),
    )
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    return Prepared(samples, noise, latent.get("noise_mask"))


def finish(latent: Latent, samples: Tensor) -> Latent:
    """The LATENT that goes out: what came in with other samples; marks of an empty latent are gone."""
    marks = ("downscale_ratio_spacial", "downscale_ratio_temporal")
    return {**{key: value for key, value in latent.items() if key not in marks}, "samples": samples}


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
    """Run one of the core's solvers inside the host's guider.

    Args: sigmas [steps + 1] on the CPU; callback(step, denoised, x, steps), in place of the host's progress bar and
        preview, for a node that samples many times and shows its own.
    Returns: [B, C, H, W] on the host's intermediate device.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    steps = len(sigmas) - 1
    samples = guider.sample(
        prepared.noise,
        prepared.samples,
        comfy.samplers.KSAMPLER(_in_host, extra_options={"solver": solver, "levels": sigmas}),
        sigmas.float(),
        denoise_mask=prepared.mask,
        callback=callback or latent_preview.prepare_callback(model, steps),
        disable_pbar=callback is not None or not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return samples.to(comfy.model_management.intermediate_device())


def _in_host(model, x, sigmas, extra_args=None, callback=None, disable=None, *, solver: str, levels: Tensor) -> Tensor:
    """A sampler function as the host calls them: its model predicts denoised latents, our solvers take velocities."""
    extra_args = extra_args or {}
    rows = x.new_ones(x.shape[0])

    def velocity(place: Tensor, sigma: Tensor) -> Tensor:
        # A model whose layers are not the host's would never look at the cancel button.
        comfy.model_management.throw_exception_if_processing_interrupted()
        return (place - model(place, sigma * rows, **extra_args)) / sigma

    def report(step: int, steps: int, place: Tensor, denoised: Tensor, sigma: Tensor) -> None:
        if callback is not None:
            callback({"i": step, "x": place, "denoised": denoised, "sigma": sigma, "sigma_hat": sigma})

    # On the CPU, for the same picture on every machine; another stream than the one the starting noise came from.
    generator = torch.Generator().manual_seed((extra_args.get("seed") or 0) ^ STEP_NOISE)
    return solve(velocity, x, levels, solver, callback=report, generator=generator)


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
