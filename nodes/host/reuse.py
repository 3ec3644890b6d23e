"""What a run may take from the run before it: everything up to the first step that a change can reach."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from . import controls
from .fingerprint import fingerprint, of_model
from .guider import Guidance
from .window import ToSigma, share_of

LIMIT = 1 << 30  # bytes of states that are kept; beyond it, not every step's

# A node may patch these without giving the model a memory from one step to the next.
HARMLESS_PATCHES = {"model_sampling", "manual_cast_dtype"}
HOOKS = ("callbacks", "injections", "attachments", "additional_models", "hook_patches")


class Kept:
    """The states of the last run, on the CPU, each before one of its pieces. They go when the model goes."""

    def __init__(self) -> None:
        self._model: weakref.ref | None = None
        self._key: Any = None
        self._pieces: tuple[Any, ...] = ()
        self._states: dict[int, Any] = {}

    def open(self, model, key: Any, pieces: Sequence[Any]) -> None:
        """Keep of the last run what holds for a new one, too.

        Args: model, the host's MODEL; key, all that decides every step; pieces, for each what decides it alone.
        """
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self._pieces, pieces, strict=False))
        reach = sum(1 for _ in same) if self._key is not None and self._key == key else -1
        self._states = {number: state for number, state in self._states.items() if number <= reach}
        self._model = weakref.ref(model.model, self._forget)
        self._key, self._pieces = key, tuple(pieces)

    def _forget(self, model: weakref.ref) -> None:
        if model is self._model:
            self._states, self._key = {}, None

    def latest(self) -> tuple[int, Any] | None:
        """The furthest piece that can be begun with, and the state before it."""
        return max(self._states.items(), key=lambda item: item[0], default=None)

    def keep(self, number: int, state: Callable[[], Any], size: int) -> None:
        """Keep the state before a piece, unless there is no room for each: the first and the last are always kept."""
        every = max(1, math.ceil(size * (len(self._pieces) + 1) / LIMIT))
        if number not in self._states and (number % every == 0 or number == len(self._pieces)):
            self._states[number] = state()


def memory_of(model, *conditionings) -> str | None:
    """Why a run cannot be taken up in its middle: what may remember earlier steps. None where nothing does."""
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
    return of_model(model, model_options=options, wrappers=wrappers), fingerprint(rest)


def pieces_of(model, route, guidance: Guidance) -> list[Any]:
    """What decides each piece of a route alone: its levels, and the guidance and block controls that act there."""
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    items = model.model_options["transformer_options"].get(controls.KEY, ())
    levels = route.levels.tolist()
    pieces = []
    for a, b in route.pieces:
        high, low = levels[a], levels[b]
        acting = [_of_control(item, high, low, to_sigma) for item in items]
        guided = _of_guidance(guidance, high, low, to_sigma)
        pieces.append((levels[a : b + 1], b <= route.resting, guided, [item for item in acting if item is not None]))
    return pieces


def _of_control(item: controls.Attached | controls.AttachedPrompt, high: float, low: float, to_sigma: ToSigma) -> Any:
    """What a control does within a step; None for nothing. Where it ends does not matter to a step well inside it."""
    control = item.control if isinstance(item, controls.Attached) else replace(item, node_id=None)
    if isinstance(item, controls.Attached) and item.control.does_nothing:
        return None
    share = share_of(high, low, control.start_percent, control.end_percent, to_sigma)
    if share == "none":
        return None
    if share == "all" and control.fade == "constant":
        control = replace(control, start_percent=0.0, end_percent=1.0)
    return fingerprint(control)


def _of_guidance(guidance: Guidance, high: float, low: float, to_sigma: ToSigma) -> Any:
    share = share_of(high, low, guidance.start, guidance.end, to_sigma)
    if share == "none" or guidance.cfg == 1:
        return None
    if share == "all" and guidance.curve == "constant":
        guidance = replace(guidance, start=0.0, end=1.0)
    return fingerprint(guidance if guidance.form == "rescale" else replace(guidance, rescale=0.0))


def _without_controls(model) -> tuple[dict[str, Any], dict[str, Any]]:
    """A MODEL's options and wrappers less what our own block controls put there, and less what is empty."""

    def pruned(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kept = {key: pruned(item) for key, item in value.items() if key != controls.KEY}
        return {key: item for key, item in kept.items() if not (isinstance(item, Mapping | list) and not item)}

    return pruned(model.model_options), pruned(model.wrappers)
