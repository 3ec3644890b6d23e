"""A step cache on a host MODEL: attached to a clone, carried out while it samples, gone afterwards.

The host asks for the predictions of a step's prompts in one place, for areas, masks and several prompts alike. There
predictions go on from earlier ones, or the negative is left out, whatever samples and guides.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ...mmdit_core.caching.step_cache import PredictionCount, StepCache, StepCacheRun
from . import controls
from . import patching as attaching
from .frontend import messages as ui
from .windows import ToSigma, holds, percent_at

KEY = "mmdit_step_cache"  # of the step_cache in transformer_options, and of our wrappers
RUN = "mmdit_step_cache_run"


@dataclass(frozen=True)
class Attached:
    """A step cache and the node that set it."""

    step_cache: StepCache
    node_id: str | None


def attach(model, step_cache: StepCache, node_id: str | None):
    """A clone of the MODEL with a step cache in place of one that it had, or with none where it does nothing; the MODEL
    that came in stays as it is."""
    kinds = comfy.patcher_extension.WrappersMP
    wrappers = {kinds.OUTER_SAMPLE: _around_run, kinds.CALC_COND_BATCH: _around_conditions}
    if step_cache.does_nothing:
        return attaching.detach(model, KEY, wrappers)
    return attaching.attach(model, KEY, Attached(step_cache, node_id), wrappers)


def of(model) -> StepCache | None:
    """The step_cache that a MODEL carries."""
    found = model.model_options["transformer_options"].get(KEY)
    return None if found is None else found.step_cache


def _around_run(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """One sampling run: what it keeps is made here, and dropped here however the run ends."""
    # The guider's options are a copy that the host made for this run alone.
    options = executor.class_obj.model_options["transformer_options"]
    attached = options[KEY]
    run = options[RUN] = StepCacheRun(attached.step_cache, sigmas.tolist())
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        options.pop(RUN, None)
    ui.show_text(attached.node_id, words_of(run.count))
    return samples


def _around_conditions(executor, model, conds, x_in, timestep, model_options):
    run: StepCacheRun | None = model_options["transformer_options"].get(RUN)
    if run is None:
        return executor(model, conds, x_in, timestep, model_options)
    # More or fewer than a positive and a negative: another kind of guidance, or a prediction that a node makes besides.
    # A context window shows a part of the latent each time.
    if len(conds) != 2 or not conds[0] or model_options.get("context_handler") is not None:
        run.count.other += sum(map(bool, conds))
        return executor(model, conds, x_in, timestep, model_options)
    sigma = float(timestep.max())
    if sigma <= 0:
        return executor(model, conds, x_in, timestep, model_options)
    to_sigma = model.model_sampling.percent_to_sigma
    place = percent_at(sigma, to_sigma) if run.step_cache.has_window else 0.0
    level = timestep.reshape(-1, *(1,) * (x_in.ndim - 1))
    computed: list[Tensor] = []

    def compute(with_negative: bool) -> tuple[Tensor, Tensor | None]:
        asked = [conds[0], conds[1] if with_negative else None]
        computed[:] = executor(model, asked, x_in, timestep, model_options)[: 1 + with_negative]
        velocities = [(x_in - denoised) / level for denoised in computed]
        return velocities[0], velocities[1] if with_negative else None

    seen = _seen(model, conds, x_in, sigma, model_options["transformer_options"])
    ahead, behind = run.predict(sigma, place, compute, negative=bool(conds[1]), seen=seen)
    # What was computed goes on as it came, not through a velocity and back.
    positive = computed[0] if computed else x_in - ahead * level
    if behind is None:
        return [positive, torch.zeros_like(x_in)]  # as the host has it where there is no negative
    if behind is ahead:
        return [positive, positive.clone()]
    return [positive, computed[1] if len(computed) > 1 else x_in - behind * level]


def _seen(model, conds: list[list[dict[str, Any]] | None], x: Tensor, sigma: float, options) -> Hashable:
    """What two steps must share for one to go on from the other; None where that cannot be known.

    A prompt, a ControlNet or a block control that begins or ends between them makes a jump that is nobody's direction;
    and a node may ask for the same prompts once more with other hooks on the model.
    """
    active: list[Hashable] = []
    for entries in conds:
        for entry in entries or ():
            if entry.get("hooks") is not None:  # weights that may be others in each step
                return None
            if _holds(sigma, entry.get("timestep_start"), entry.get("timestep_end")):
                active.append((entry.get("uuid"), _controlnets(entry.get("control"), sigma)))
        active.append(None)
    to_sigma = model.model_sampling.percent_to_sigma
    items = enumerate(options.get(controls.KEY, ()))
    timed = [place for place, item in items if _item_holds(item, sigma, to_sigma)]
    return tuple(x.shape), x.dtype, x.device, tuple(active), tuple(timed), _hooks(options)


class _Same:
    """Equal to itself alone, whatever it holds calls equal; held, so that its place in memory stays its own."""

    def __init__(self, held: Any):
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._held is other._held

    def __hash__(self) -> int:
        return id(self._held)


def _hooks(options) -> Hashable:
    """The functions that act inside the model, each with its place."""
    found = []
    for kind in ("patches", "patches_replace"):
        for name, held in options.get(kind, {}).items():
            each = held.items() if isinstance(held, dict) else enumerate(held)
            found += [(kind, name, place, _Same(function)) for place, function in each]
    return frozenset(found)


def _holds(sigma: float, start: float | None, end: float | None) -> bool:
    """As the host reads a window of noise levels."""
    return (start is None or sigma <= start) and (end is None or sigma >= end)


def _controlnets(control, sigma: float) -> int:
    """How many ControlNets of a chain act."""
    acting = 0
    while control is not None:
        acting += _holds(sigma, *(getattr(control, "timestep_range", None) or (None, None)))
        control = getattr(control, "previous_controlnet", None)
    return acting


def _item_holds(item: controls.Attached | controls.AttachedPrompt, sigma: float, to_sigma: ToSigma) -> bool:
    window = item.control if isinstance(item, controls.Attached) else item
    return holds(sigma, window.start_percent, window.end_percent, to_sigma)


def words_of(count: PredictionCount) -> str:
    """What a step cache did in a run."""
    if not count.predictions:
        return "nothing was left out: another node makes the predictions itself"
    lines = [f"{count.work:.0%} of all predictions computed"]
    guided = count.predictions - count.without_uncond
    if guided:
        done = [f"{n} {what}" for n, what in ((count.reused, "carried over"), (count.left_out, "left out")) if n]
        more = f" ({', '.join(done)})" if done else ""
        lines.append(f"negative prompt computed in {count.uncond} of {guided} predictions{more}")
    elif not count.other:
        lines.append("cfg is 1: there is no negative prompt to compute")
    if count.other:
        lines.append(f"{count.other} predictions that another node asked for, all computed")
    if count.extrapolated:
        lines.append(f"{count.extrapolated} of {count.predictions} predictions carried over whole")
    return "\n".join(lines)
