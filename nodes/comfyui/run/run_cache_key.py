"""What decides each step of a run: the steps before the first one that a change affects need not run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....mmdit_core.flow.window import Window
from .. import patching
from ..fingerprint import fingerprint, of_model
from .run_cache import RunCache
from .sampling import PreparedLatent, shift_of
from .solver import RunSteps

# A node may patch these, and the model still has no memory from one step to the next.
HARMLESS_PATCHES = {"model_sampling", "manual_cast_dtype"}
HOOKS = ("callbacks", "injections", "attachments", "additional_models", "hook_patches")


def open_cache(
    cache: RunCache, model, sampled, conditionings: Sequence[Any], prepared: PreparedLatent, steps: RunSteps, seed: int
) -> str | None:
    """Open a run cache for a run.

    Args: model, as it came into the node; sampled, the same with the shift of the run.
    Returns: in words, why the cache cannot be used; None if it can.
    """
    reason = memory_of(model, *conditionings)
    if reason is not None:
        cache.clear()
        return reason
    options, wrappers = _without_ours(model)
    latent = (prepared.samples, prepared.noise, prepared.mask)
    solver = (steps.solver, steps.options, steps.seeds, steps.start, float(steps.sigmas[0]))
    inputs = fingerprint([model.load_device, *conditionings, *latent, seed, shift_of(sampled), *solver])
    key = of_model(model, model_options=options, wrappers=wrappers), inputs
    cache.open(model, key, segments_of(sampled, steps))
    return None


def memory_of(model, *conditionings) -> str | None:
    """In words, what may have a memory of earlier steps, so that no run can start in the middle; None if nothing."""
    if patching.step_cache_of(model) is not None:
        return "SpeedPlan extrapolates from the predictions of earlier steps"
    options, wrappers = _without_ours(model)
    if options or wrappers:
        return "another node's patch is on the model, and may have a memory of earlier steps"
    if any(getattr(model, name, None) for name in HOOKS) or set(model.object_patches) - HARMLESS_PATCHES:
        return "another node's hook is on the model, and may have a memory of earlier steps"
    entries = [entry for conditioning in conditionings for _, entry in conditioning]
    if any("hooks" in entry for entry in entries):
        return "a prompt has hooks, which may have a memory of earlier steps"
    if any(type(entry.get("control")).__module__ not in ("builtins", "comfy.controlnet") for entry in entries):
        return "a prompt has another pack's ControlNet, which may have a memory of earlier steps"
    return None


def segments_of(model, steps: RunSteps) -> list[Any]:
    """For each segment what decides it alone: its sigmas, and all that acts in its model calls."""
    guidance, to_sigma = steps.guidance, model.get_model_object("model_sampling").percent_to_sigma
    # Without its window: a control decides a step by whether it acts in it, and how strongly.
    controls = [(c.window, fingerprint(replace(c, window=Window()))) for c in patching.controls_of(model)]

    def call_at(sigma: float) -> Any:
        scale = guidance.scale(sigma, to_sigma)
        form = (scale, guidance.form, guidance.form == "rescale" and guidance.rescale) if scale != 1 else None
        strengths = [(window.strength_at(sigma, to_sigma), control) for window, control in controls]
        return form, [item for item in strengths if item[0]]

    if steps.evaluated is None:  # an adaptive solver may call the model at any sigma
        calls: list[Any] = [[guidance, controls]] * len(steps.segments)
    else:
        calls = [[call_at(sigma) for sigma in sigmas] for sigmas in steps.evaluated]
    ranges = zip(steps.segments, calls, strict=True)
    return [(steps.sigmas[a : b + 1].tolist(), b <= steps.zero_steps, made) for (a, b), made in ranges]


def _without_ours(model) -> tuple[dict[str, Any], dict[str, Any]]:
    """A MODEL's options and wrappers less this pack's, and less empty ones."""

    def pruned(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kept = {key: pruned(item) for key, item in value.items() if key != patching.KEY}
        return {key: item for key, item in kept.items() if not (isinstance(item, Mapping | list) and not item)}

    return pruned(model.model_options), pruned(model.wrappers)
