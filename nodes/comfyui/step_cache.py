"""A step cache on a MODEL: the predictions of a step's conditionings, whatever samples and guides.

ComfyUI requests the predictions of a step's prompts in one place, for areas, masks and several prompts alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...mmdit_core.caching.step_cache import PredictionCount, StepCacheRun
from ...mmdit_core.flow.window import Window
from .fingerprint import Same


def predict(
    cache: StepCacheRun,
    windows: Sequence[Window],
    executor,
    model,
    conds,
    x_in: Tensor,
    timestep: Tensor,
    model_options,
) -> list[Tensor]:
    """The denoised predictions of some conditionings, computed as far as the step cache has it.

    Args: windows, of the block controls on the model; executor and the rest, as a CALC_COND_BATCH wrapper gets them.
    """
    # Anything but cond and uncond is another kind of guidance, or a prediction that another node requests. A context
    # window has a part of the latent.
    if len(conds) != 2 or not conds[0] or model_options.get("context_handler") is not None:
        cache.count.other += sum(map(bool, conds))
        return executor(model, conds, x_in, timestep, model_options)
    sigma = float(timestep.max())
    if sigma <= 0:
        return executor(model, conds, x_in, timestep, model_options)
    to_sigma = model.model_sampling.percent_to_sigma
    prediction = cache.begin(
        sigma,
        has_uncond=bool(conds[1]),
        kind=_kind(conds, x_in, sigma, windows, to_sigma, model_options["transformer_options"]),
    )
    level = timestep.reshape(-1, *(1,) * (x_in.ndim - 1))
    computed: list[Tensor] = []
    if prediction.computes:
        requested = [conds[0], conds[1] if prediction.computes_uncond else None]
        computed = executor(model, requested, x_in, timestep, model_options)[: 1 + prediction.computes_uncond]
    cond, uncond = cache.finish(prediction, *((x_in - denoised) / level for denoised in computed))
    # A computed prediction goes on as it came, without the way through a velocity and back.
    denoised = computed[0] if computed else x_in - cond * level
    if uncond is None:
        return [denoised, torch.zeros_like(x_in)]  # as ComfyUI has it without a negative prompt
    return [denoised, computed[1] if len(computed) > 1 else x_in - uncond * level]


def _kind(
    conds: Sequence[list[dict[str, Any]] | None], x: Tensor, sigma: float, windows: Sequence[Window], to_sigma, options
) -> Hashable:
    """What two steps must share for one to be extrapolated from the other; None if that cannot be known.

    A prompt, ControlNet or block control that begins or ends is a discontinuity, which must not be extrapolated across.
    A node may also request the same prompts once more with other hooks on the model.
    """
    active: list[Hashable] = []
    for entries in conds:
        for entry in entries or ():
            if entry.get("hooks") is not None:  # the weights may change in each step
                return None
            if _holds(sigma, entry.get("timestep_start"), entry.get("timestep_end")):
                active.append((entry.get("uuid"), _active_controlnets(entry.get("control"), sigma)))
        active.append(None)
    acting = tuple(window.holds(sigma, to_sigma) for window in windows)
    return tuple(x.shape), x.dtype, x.device, tuple(active), acting, _hooks(options)


def _hooks(options) -> Hashable:
    """The functions that act inside the model, each with its position."""
    found = []
    for kind in ("patches", "patches_replace"):
        for name, held in options.get(kind, {}).items():
            each = held.items() if isinstance(held, dict) else enumerate(held)
            found += [(kind, name, position, Same(function)) for position, function in each]
    return frozenset(found)


def _holds(sigma: float, start: float | None, end: float | None) -> bool:
    """Whether ComfyUI's window of sigmas holds a sigma."""
    return (start is None or sigma <= start) and (end is None or sigma >= end)


def _active_controlnets(control, sigma: float) -> int:
    """How many ControlNets of a chain are active."""
    active = 0
    while control is not None:
        active += _holds(sigma, *(getattr(control, "timestep_range", None) or (None, None)))
        control = getattr(control, "previous_controlnet", None)
    return active


def summary(count: PredictionCount) -> str:
    """What a run computed, in lines."""
    if not count.predictions:
        return "everything was computed: another node makes the predictions itself"
    lines = [f"{count.work:.0%} of all predictions computed"]
    guided = count.predictions - count.without_uncond
    if guided:
        more = f" ({count.reused} reused)" if count.reused else ""
        lines.append(f"negative prompt computed in {count.uncond} of {guided} predictions{more}")
    elif not count.other:
        lines.append("cfg is 1: there is no negative prompt to compute")
    if count.other:
        lines.append(f"{count.other} predictions that another node requested, all computed")
    if count.extrapolated:
        lines.append(f"{count.extrapolated} of {count.predictions} predictions extrapolated")
    return "\n".join(lines)
