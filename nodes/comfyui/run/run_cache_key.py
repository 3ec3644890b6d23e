"""What decides a run, step by step: the steps before the first that a change can reach need not be run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ....mmdit_core.control.spec import BlockControl
from ....mmdit_core.flow.sigma import PercentToSigma
from ....mmdit_core.flow.window import Window
from .. import patching
from ..fingerprint import fingerprint, of_model
from .guider import Guidance
from .solver import Route

# A node may patch these without giving the model a memory from one step to the next.
HARMLESS_PATCHES = {"model_sampling", "manual_cast_dtype"}
HOOKS = ("callbacks", "injections", "attachments", "additional_models", "hook_patches")


def memory_of(model, *conditionings) -> str | None:
    """Why a run cannot be taken up in its middle: what may remember earlier steps. None where nothing does."""
    if patching.step_cache_of(model) is not None:
        return "SpeedPlan carries predictions over from earlier steps"
    options, wrappers = _without_controls(model)
    if options or wrappers:
        return "another node's patch is on the model, and may remember earlier steps"
    if any(getattr(model, name, None) for name in HOOKS) or set(model.object_patches) - HARMLESS_PATCHES:
        return "another node's hook is on the model, and may remember earlier steps"
    entries = [entry for conditioning in conditionings for _, entry in conditioning]
    if any("hooks" in entry for entry in entries):
        return "a prompt carries hooks, which may remember earlier steps"
    if any(type(entry.get("control")).__module__ not in ("builtins", "comfy.controlnet") for entry in entries):
        return "a prompt carries another pack's ControlNet, which may remember earlier steps"
    return None


def key_of(model, *rest: Any) -> Any:
    """All that decides every step: the model but for the block controls, and what else is given."""
    options, wrappers = _without_controls(model)
    return of_model(model, model_options=options, wrappers=wrappers), fingerprint([model.load_device, *rest])


def pieces_of(model, route: Route, guidance: Guidance) -> list[Any]:
    """What decides each piece of a route alone: its levels, and all that acts in the model calls that it makes."""
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    items = patching.controls_of(model)
    if route.is_adaptive:  # no one knows where it will ask
        everything = fingerprint([guidance, items])
        return [(route.levels[a : b + 1].tolist(), b <= route.resting, everything) for a, b in route.pieces]
    # Each control without its window: what counts is whether it acts, and how much.
    known = [(item, fingerprint(_timeless(item))) for item in items]

    def call_at(sigma: float) -> Any:
        shares = [(item.window.strength_at(sigma, to_sigma), content) for item, content in known]
        return _guided(guidance, sigma, to_sigma), [share for share in shares if share[0]]

    pieces = []
    for a, b in route.pieces:
        calls = [call_at(sigma) for sigma in route.asked(a, b)]
        pieces.append((route.levels[a : b + 1].tolist(), b <= route.resting, calls))
    return pieces


def _timeless(item: BlockControl) -> BlockControl:
    return replace(item, window=Window())


def _guided(guidance: Guidance, sigma: float, to_sigma: PercentToSigma) -> Any:
    scale = guidance.scale(sigma, to_sigma)
    if scale == 1:
        return None
    return scale, guidance.form, guidance.rescale if guidance.form == "rescale" else None


def _without_controls(model) -> tuple[dict[str, Any], dict[str, Any]]:
    """A MODEL's options and wrappers less what this pack put there, and less what is empty."""

    def pruned(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kept = {key: pruned(item) for key, item in value.items() if key != patching.KEY}
        return {key: item for key, item in kept.items() if not (isinstance(item, Mapping | list) and not item)}

    return pruned(model.model_options), pruned(model.wrappers)
