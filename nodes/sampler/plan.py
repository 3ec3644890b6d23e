"""From FlowMatchingSampler's inputs to what is run: noise levels, noise, guidance. What cannot be is refused here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from ...mmdit_core.flow import schedules as schedule
from ...mmdit_core.flow.sigma import flux_mu, mu_to_shift, resolution_shift
from ...mmdit_core.solvers import SOLVERS
from ..comfyui.run import resume as handover
from ..comfyui.run import sampling
from ..comfyui.run.guider import CFG_FUNCTION, FORMS, Guidance
from ..comfyui.run.noise import Seeds
from ..comfyui.run.solver import Route
from ..errors import InputError

NODE = "FlowMatchingSampler"
MIN_DENOISE = 1e-4
OWN = "the model's own"
NEAR = 1e-5  # noise levels that are the same but for rounding


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    model: with the shift; shift_from: where that comes from, in words; source: of the levels; levels [steps + 1], of
    the whole schedule; first and last: the steps of it to run, last left out; route: those steps, None where there are
    none; start: the run that this one goes on from.
    """

    model: Any
    shift: float
    shift_from: str
    levels: Tensor
    source: str
    first: int
    last: int
    guidance: Guidance
    seeds: Seeds
    prepared: sampling.Prepared
    route: Route | None
    start: handover.Unfinished | None


def make_plan(model, positive, latent: dict[str, Any], samples: Tensor, dials: SimpleNamespace) -> Plan:
    """Args: samples, the latent's as they fit the model; dials, the node's inputs by name. Raises: InputError."""
    guidance = guidance_of(dials)
    _check_form(model, dials)
    seeds = _seeds(dials)
    _check_latent(latent, seeds)
    shift, shift_from = _shift(model, samples, dials)
    levels, source = levels_of(dials, shift)
    first, last = part_of(dials, levels)
    runs = first < last and dials.denoise >= MIN_DENOISE
    _check_rest(dials, len(levels) - 1)
    start = _start(latent, levels, first, dials) if runs else None
    prepared = sampling.prepare(model, latent, seeds, add_noise=start is None and dials.add_noise != "disable")
    if start is not None:
        prepared = sampling.resumed(prepared, start)
        start = _with_fit_history(start, model, positive, levels, latent.get("noise_mask"), dials)
    route = Route(
        dials.solver,
        levels[first : last + 1],
        seeds.of_steps(len(samples), latent.get("batch_index")),
        _options(dials),
        resting=max(0, dials.zero_steps - first) if dials.guidance == "cfg_zero_star" else 0,
        start=start,
    )
    return Plan(
        model if shift_from == OWN else sampling.with_shift(model, shift),
        shift,
        shift_from,
        levels,
        source,
        first,
        last,
        guidance,
        seeds,
        prepared,
        route if runs else None,
        start,
    )


def _seeds(dials: SimpleNamespace) -> Seeds:
    return Seeds(
        dials.seed,
        each=dials.batch_noise == "per image",
        variation=dials.variation_strength,
        variation_seed=dials.variation_seed,
        steps=None if dials.step_noise_seed < 0 else dials.step_noise_seed,
    )


def part_of(dials: SimpleNamespace, levels: Tensor) -> tuple[int, int]:
    """The first step to run, and the one to stop before."""
    last = min(dials.end_step, max(0, len(levels) - 1))
    return min(dials.start_step, last), last


def why_nothing(plan: Plan, dials: SimpleNamespace) -> str:
    """Which dial leaves no step to run, and what would."""
    if dials.denoise < MIN_DENOISE:
        return "denoise is 0; raise it"
    steps = max(0, len(plan.levels) - 1)
    if not steps:
        return "The schedule has no steps"
    if dials.end_step <= dials.start_step:
        return f"end_step {dials.end_step} is not after start_step {dials.start_step}; raise it"
    return f"start_step is {dials.start_step}, and the schedule has {steps} steps; lower it"


def guidance_of(dials: SimpleNamespace) -> Guidance:
    """Raises: InputError for a window that ends before it starts."""
    if dials.cfg_end < dials.cfg_start:
        raise InputError(
            NODE,
            "cfg_end",
            f"{dials.cfg_end:g} lies before cfg_start, {dials.cfg_start:g}",
            "Set it to cfg_start or later",
        )
    return Guidance(dials.cfg, dials.guidance, dials.cfg_start, dials.cfg_end, dials.cfg_curve, dials.rescale)


def _check_rest(dials: SimpleNamespace, steps: int) -> None:
    if dials.guidance == "cfg_zero_star" and 0 < steps <= dials.zero_steps:
        raise InputError(
            NODE,
            "zero_steps",
            f"{dials.zero_steps} of {steps} steps would not move at all, and nothing but noise would come out",
            "Set it to a few of the first steps, 0 or 1 usually",
        )


def _check_form(model, dials: SimpleNamespace) -> None:
    if FORMS[dials.guidance] is not None and CFG_FUNCTION in model.model_options:
        raise InputError(
            NODE,
            "guidance",
            f"{dials.guidance!r} would take the place of another node's guidance on this model",
            "Set cfg to use that node's, or take that node away",
        )


def _check_latent(latent: dict[str, Any], seeds: Seeds) -> None:
    samples, indices = latent["samples"], latent.get("batch_index")
    if samples.is_nested:
        if seeds.each or seeds.variation:
            raise InputError(
                NODE,
                "latent_image",
                "it holds latents of several kinds",
                "Leave batch_noise and variations as they were",
            )
        return
    if not samples.isfinite().all():
        raise InputError(
            NODE, "latent_image", "it holds values that are not finite", "Look at the node that made this latent"
        )
    if indices is not None and seeds.each and len(indices) != len(samples):
        raise InputError(
            NODE,
            "latent_image",
            f"its batch_index names {len(indices)} pictures and it holds {len(samples)}",
            'Set batch_noise to "shared", or look at the node that made this latent',
        )


def _shift(model, samples: Tensor, dials: SimpleNamespace) -> tuple[float, str]:
    return shift_by(
        dials,
        sampling.shift_of(model),
        lambda: sampling.tokens_of(model, samples),
        lambda: sampling.pixels_of(model, samples),
    )


def shift_by(
    dials: SimpleNamespace, own: float, tokens: Callable[[], int], pixels: Callable[[], int]
) -> tuple[float, str]:
    """The shift to sample with, and where it comes from. Args: own, the model's; tokens and pixels of the picture."""
    if dials.size_shift == "flux":
        count = tokens()
        return mu_to_shift(flux_mu(count)), f"FLUX's rule for {count} image tokens"
    base, said = (dials.shift, "as set") if dials.shift else (own, OWN)
    if dials.size_shift == "off":
        return base, said
    return base * resolution_shift(pixels()), f"{base:g} ({said}) at 1024 x 1024, by the root of the pixels"


def levels_of(dials: SimpleNamespace, shift: float) -> tuple[Tensor, str]:
    """All noise levels [steps + 1], and where they come from. Raises: InputError for levels that cannot be."""
    text = dials.custom_sigmas.strip()
    if dials.sigmas is not None:
        if text:
            raise InputError(
                NODE, "custom_sigmas", "the input sigmas is connected, too", "Disconnect it, or clear this text"
            )
        if len(dials.sigmas) < 2:  # what the host's own nodes give for "nothing to do"
            return dials.sigmas.double().cpu(), "the input sigmas"
        return _custom("sigmas", dials.sigmas.tolist()), "the input sigmas"
    if text:
        return _custom("custom_sigmas", text), "custom_sigmas"
    denoise = dials.denoise if dials.denoise >= MIN_DENOISE else 1.0  # at 0 nothing is run
    return schedule.sigmas(dials.steps, dials.schedule, shift, denoise=denoise), dials.schedule


def _custom(name: str, levels: Any) -> Tensor:
    try:
        return schedule.parse_sigmas(levels)
    except ValueError as error:
        raise InputError(NODE, name, str(error), "Give levels that fall from 1, such as 1, 0.9, 0.6, 0") from error


def _start(latent: dict[str, Any], levels: Tensor, first: int, dials: SimpleNamespace) -> handover.Unfinished | None:
    """The run that the latent comes from, if this one is to go on with it."""
    found, level = handover.unfinished(latent), float(levels[first])
    fits = found is not None and abs(found.sigma - level) < NEAR
    if dials.add_noise == "enable":
        return None
    if fits:
        return found
    if dials.add_noise == "disable":
        if level > 1 - NEAR:
            raise InputError(
                NODE,
                "add_noise",
                f"without noise there is nothing to begin with at step {first}, noise level {level:g}",
                "Set start_step to the step that the latent is at, or add_noise to auto",
            )
        return None
    if found is not None:
        raise InputError(
            NODE,
            "start_step",
            f"the latent comes from a run that ended at noise level {found.sigma:g}, and step {first} is at {level:g}",
            "Give both samplers the same schedule and this one the first one's end_step, or set add_noise to enable",
        )
    return None


def _with_fit_history(
    start: handover.Unfinished, model, positive, levels: Tensor, mask: Tensor | None, dials: SimpleNamespace
) -> handover.Unfinished:
    """Less what the solver remembers, where that was seen in another flow: an inversion's, for another prompt.

    Args: levels, all of the schedule, of which this run may follow a part.
    """
    if start.flow is None:
        return start
    same = dials.cfg == 1 and start.flow == handover.flow_of(model, positive, levels, mask)
    return start if same and SOLVERS[dials.solver].reversible else handover.without_history(start)


def _options(dials: SimpleNamespace) -> dict[str, float]:
    """Of the dials those that this solver has."""
    known = {option.name for option in SOLVERS[dials.solver].options}
    return {name: getattr(dials, name) for name in ("eta", "tolerance") if name in known}
