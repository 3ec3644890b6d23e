"""The run cache: the states of the last run, from which the next run starts at the first step that a change affects."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ....mmdit_core.flow.window import Window
from .. import patching
from ..fingerprint import fingerprint, of_model

if TYPE_CHECKING:
    from .sampling import PreparedLatent
    from .solver import RunState, RunSteps

LIMIT = 1 << 30  # bytes of states; beyond it, not every step's are kept

# A node may patch these, and the model still has no memory from one step to the next.
HARMLESS_PATCHES = {"model_sampling", "manual_cast_dtype"}
HOOKS = ("callbacks", "injections", "attachments", "additional_models", "hook_patches")


class RunCache:
    """The states of the last run, on the CPU, each before one of its segments. They are dropped with the model.

    A cache that is closed has no states and keeps none.
    """

    def __init__(self) -> None:
        self._model: weakref.ref | None = None
        self._key: Any = None
        self._segments: tuple[Any, ...] = ()
        self._states: dict[int, RunState] = {}

    def open(self, model, sampled, conditionings, prepared: PreparedLatent, steps: RunSteps, seed: int) -> str | None:
        """Keep the states of the last run that are valid for a new run, too.

        Args: model, as it came into the node; sampled, the same with the shift of the run.
        Returns: in words, why the cache cannot be used, which closes it; None if it can.
        """
        others = others_on(model)
        reason = memory_of(model, others, *conditionings)
        if reason is not None:
            self.close()
            return reason
        latent = (prepared.samples, prepared.noise, prepared.mask)
        solver = (steps.solver, steps.options, steps.seeds, steps.start, float(steps.sigmas[0]))
        shift = getattr(sampled.get_model_object("model_sampling"), "shift", None)
        inputs = fingerprint([model.load_device, *conditionings, *latent, seed, shift, *solver])
        key, segments = (of_model(model, **others), inputs), segments_of(sampled, steps)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self._segments, segments, strict=False))
        valid = sum(1 for _ in same) if self._key is not None and self._key == key else -1
        self._states = {index: state for index, state in self._states.items() if index <= valid}
        self._model = weakref.ref(model.model, self._model_gone)
        self._key, self._segments = key, tuple(segments)
        return None

    def close(self) -> None:
        """Drop all states, and keep none until the cache is opened."""
        self._states, self._key = {}, None

    def latest(self) -> tuple[int, RunState] | None:
        """The last segment that the run can start with, and the state before it."""
        return max(self._states.items(), key=lambda item: item[0], default=None)

    def keep(self, index: int, state: RunState) -> None:
        """Keep the state before a segment; the first and the last always, the others as far as there is room."""
        every = max(1, math.ceil(state.bytes * (len(self._segments) + 1) / LIMIT))
        wanted = self._key is not None and index not in self._states
        if wanted and (index % every == 0 or index == len(self._segments)):
            self._states[index] = state.to("cpu")

    def _model_gone(self, model: weakref.ref) -> None:
        if model is self._model:
            self.close()


def memory_of(model, others: Mapping[str, Any], *conditionings) -> str | None:
    """In words, what may have a memory of earlier steps, so that no run can start in the middle; None if nothing.

    Args: others, as `others_on` gives them.
    """
    if patching.step_cache_of(model) is not None:
        return "SpeedPlan extrapolates from the predictions of earlier steps"
    if any(others.values()):
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
    guidance, controls = steps.guidance, patching.controls_of(model)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    # Without its window: a control decides a step by whether it acts in it, and how strongly.
    acting = [(control.window, fingerprint(replace(control, window=Window()))) for control in controls]

    def call_at(sigma: float) -> Any:
        scale = guidance.scale(sigma, to_sigma)
        form = (scale, guidance.form, guidance.form == "rescale" and guidance.rescale) if scale != 1 else None
        strengths = [(window.strength_at(sigma, to_sigma), control) for window, control in acting]
        return form, [item for item in strengths if item[0]]

    if steps.evaluated is None:  # an adaptive solver may call the model at any sigma
        calls: list[Any] = [[guidance, acting]] * len(steps.segments)
    else:
        calls = [[call_at(sigma) for sigma in sigmas] for sigmas in steps.evaluated]
    ranges = zip(steps.segments, calls, strict=True)
    return [(steps.sigmas[a : b + 1].tolist(), b <= steps.zero_steps, made) for (a, b), made in ranges]


def others_on(model) -> dict[str, Any]:
    """A MODEL's model_options and wrappers less this pack's, and less empty ones."""

    def pruned(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        kept = {key: pruned(item) for key, item in value.items() if key != patching.KEY}
        return {key: item for key, item in kept.items() if not (isinstance(item, Mapping | list) and not item)}

    return {name: pruned(getattr(model, name)) for name in ("model_options", "wrappers")}
