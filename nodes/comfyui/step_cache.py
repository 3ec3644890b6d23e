"""A step cache on a MODEL: the predictions of a step's conditionings, whatever samples and guides.

ComfyUI requests the predictions of a step's prompts in one place, for areas, masks and several prompts alike.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...mmdit_core.caching.step_cache import PredictionCount, StepCacheRun
from ...mmdit_core.flow.window import Window
from .fingerprint import Same, fingerprint


class Kind(NamedTuple):
    """What two steps must share for one to be extrapolated from the other.

    Fields: shape, dtype and device of the latent; prompts that act, each with its branch (0 cond, 1 uncond), its name
    and how many ControlNets act; windows, which block controls act; hooks, the functions that act inside the model.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    prompts: tuple[tuple[int, Hashable, int], ...]
    windows: tuple[bool, ...]
    hooks: frozenset[Hashable]


GUIDED = ("positive", "negative")  # names of the lists of classifier-free guidance, in the order of a call
Stored = Mapping[Kind, Any]  # the stored predictions of a run


def predict(
    cache: StepCacheRun,
    windows: Sequence[Window],
    names: Sequence[str | None],
    executor,
    model,
    conds,
    x_in: Tensor,
    timestep: Tensor,
    model_options,
) -> list[Tensor]:
    """The denoised predictions of some conditionings, computed as far as the step cache has it.

    Args: windows, of the block controls on the model; names, of the guider's lists that the conditionings are;
        executor and the rest, as a CALC_COND_BATCH wrapper gets them.
    """
    sigma, count = float(timestep.max()), cache.count
    # ComfyUI computes nothing for a branch whose prompts all have a range of steps without this one.
    acts = [any(_acts(entry, sigma) for entry in entries or ()) for entries in conds]
    # Anything but cond and uncond is another kind of guidance, or a prediction that another node requests. A context
    # window has a part of the latent.
    known = [name for name, entries in zip(names, conds, strict=True) if entries] in (["positive"], [*GUIDED])
    if len(conds) != 2 or not conds[0] or not known or model_options.get("context_handler") is not None:
        count.other += sum(acts)
        return executor(model, conds, x_in, timestep, model_options)
    if sigma <= 0:
        return executor(model, conds, x_in, timestep, model_options)
    count.out_of_range += sum(bool(entries) and not active for entries, active in zip(conds, acts, strict=True))
    if not acts[0]:
        count.predictions += 1
        count.without_cond += 1
        count.uncond += acts[1]
        count.without_uncond += not acts[1]
        return executor(model, conds, x_in, timestep, model_options)
    to_sigma = model.model_sampling.percent_to_sigma
    prediction = cache.begin(
        sigma,
        has_uncond=acts[1],
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
) -> Kind | None:
    """The kind of the predictions of some conditionings; None if it cannot be known.

    A prompt, ControlNet or block control that begins or ends is a discontinuity, which must not be extrapolated across.
    A node may also request the same prompts once more with other hooks on the model.
    """
    prompts: list[tuple[int, Hashable, int]] = []
    for branch, entries in enumerate(conds):
        for entry in entries or ():
            if entry.get("hooks") is not None:  # the weights may change in each step
                return None
            if _acts(entry, sigma):
                prompts.append((branch, entry.get("uuid"), _active_controlnets(entry.get("control"), sigma)))
    acting = tuple(window.holds(sigma, to_sigma) for window in windows)
    return Kind(tuple(x.shape), x.dtype, x.device, tuple(prompts), acting, _hooks(options))


def stored_of(cache: StepCacheRun, conds: Sequence[Sequence[Mapping[str, Any]]]) -> Stored:
    """The stored predictions of a run, on the CPU, for `within` of another: its prompts have other uuids.

    Args: conds, of the run's guider, by branch.
    """
    stored = {kind: item for kind, item in cache.stored.items() if isinstance(kind, Kind)}
    return _renamed(stored, dict(_contents(conds)))


def within(
    cache: StepCacheRun, sigmas: Sequence[float], stored: Stored, conds: Sequence[Sequence[Mapping[str, Any]]]
) -> StepCacheRun:
    """The state of a run as a part of a longer one. Args: sigmas of all parts; stored, of the part before."""
    uuids = {(key[0], content): key[1] for key, content in _contents(conds)} if stored else {}
    found: dict[Hashable, Any] = {kind: item.to(kind.device) for kind, item in _renamed(stored, uuids).items()}
    return StepCacheRun(cache.step_cache, sigmas, found)


def _renamed(stored: Stored, names: Mapping[tuple[int, Any], Hashable]) -> Stored:
    """The stored predictions with other names of prompts, without those that have none."""
    found: dict[Kind, Any] = {}
    for kind, item in stored.items():
        if all((branch, name) in names for branch, name, _ in kind.prompts):
            prompts = tuple((branch, names[branch, name], active) for branch, name, active in kind.prompts)
            found[kind._replace(prompts=prompts)] = item
    return found


def _contents(conds: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[tuple[int, Any], Hashable]]:
    """For each conditioning its branch and uuid, and a fingerprint of the rest."""
    found = []
    for branch, entries in enumerate(conds):
        for entry in entries:
            made = {name: getattr(value, "cond", value) for name, value in entry.get("model_conds", {}).items()}
            found.append(((branch, entry.get("uuid")), fingerprint({**entry, "uuid": None, "model_conds": made})))
    return found


def _hooks(options) -> frozenset[Hashable]:
    """The functions that act inside the model, each with its position."""
    found = []
    for kind in ("patches", "patches_replace"):
        for name, held in options.get(kind, {}).items():
            each = held.items() if isinstance(held, dict) else enumerate(held)
            found += [(kind, name, position, Same(function)) for position, function in each]
    return frozenset(found)


def _acts(entry: Mapping[str, Any], sigma: float) -> bool:
    """Whether a conditioning's range holds a sigma."""
    return _holds(sigma, entry.get("timestep_start"), entry.get("timestep_end"))


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
    elif not count.other and not count.out_of_range:
        lines.append("cfg is 1: there is no negative prompt to compute")
    if count.out_of_range:
        lines.append(f"{count.out_of_range} times a prompt was left out by its timestep range")
    if count.other:
        lines.append(f"{count.other} predictions that another node requested, all computed")
    if count.extrapolated:
        lines.append(f"{count.extrapolated} of {count.predictions} predictions extrapolated")
    if count.ends_at:
        lines.append(f"the schedule ends at sigma {count.ends_at:.3g}: the plan is for this part of a run alone")
    return "\n".join(lines)
