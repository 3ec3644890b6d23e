"""The run cache: the states of the last runs, from which a run starts at the first step that a change affects."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ....mmdit_core.flow.window import Window
from .. import patching
from ..fingerprint import fingerprint, of_model

if TYPE_CHECKING:
    from .sampling import PreparedLatent
    from .solver import RunState, RunSteps

LIMIT = 1 << 30  # bytes of all states; beyond it, the oldest runs are dropped
RUN_LIMIT = LIMIT // 4  # bytes of one run's; beyond it, not every step's are kept
MOST_RUNS = 16

# A node may patch these, and the model still has no memory from one step to the next.
HARMLESS_PATCHES = {"model_sampling", "manual_cast_dtype"}
HOOKS = ("callbacks", "injections", "attachments", "additional_models", "hook_patches")


@dataclass(eq=False)
class CachedRun:
    """One run's states, each on the CPU and before one of its segments; the last one is after all of them.

    Fields: model, a weak reference; key of all that decides the whole run; segments, what decides each; states by
    segment, shared with the runs that started with them.
    """

    model: weakref.ref
    key: Any
    segments: tuple[Any, ...]
    states: dict[int, RunState]

    def valid_for(self, key: Any, segments: tuple[Any, ...]) -> dict[int, RunState]:
        """The states that another run has, too."""
        if self.key != key:
            return {}
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.segments, segments, strict=False))
        valid = sum(1 for _ in same)
        return {index: state for index, state in self.states.items() if index <= valid}


class RunCache:
    """The states of the last MOST_RUNS runs, latest last. They are dropped with their model, and beyond LIMIT.

    A cache that is closed has no states and keeps none.
    """

    def __init__(self) -> None:
        self._runs: list[CachedRun] = []

    def open(self, model, sampled, conditionings, prepared: PreparedLatent, steps: RunSteps, seed: int) -> str | None:
        """Begin a new run with the states of an earlier one that are valid for it, too: of the one with the most.

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
        key, segments = (of_model(model, **others), inputs), tuple(segments_of(sampled, steps))
        found = [run.valid_for(key, segments) for run in reversed(self._runs)]
        states = max(found, key=lambda each: max(each, default=-1), default={})
        self._runs = [run for run in self._runs if (run.key, run.segments) != (key, segments)]
        self._runs.append(CachedRun(weakref.ref(model.model, self._model_gone), key, segments, dict(states)))
        del self._runs[:-MOST_RUNS]
        return None

    def close(self) -> None:
        """Drop all states, and keep none until the cache is opened."""
        self._runs = []

    def latest(self) -> tuple[int, RunState] | None:
        """The last segment that the present run can start with, and the state before it."""
        states = self._runs[-1].states if self._runs else {}
        return max(states.items(), key=lambda item: item[0], default=None)

    def keep(self, index: int, state: RunState) -> None:
        """Keep the state before a segment; the first and the last always, the others as far as a run has room."""
        if not self._runs:
            return
        run = self._runs[-1]
        every = max(1, math.ceil(state.bytes * (len(run.segments) + 1) / RUN_LIMIT))
        if index not in run.states and (index % every == 0 or index == len(run.segments)):
            run.states[index] = state.to("cpu")
            while len(self._runs) > 1 and self.bytes > LIMIT:
                del self._runs[0]

    @property
    def bytes(self) -> int:
        """Memory of all states; those that runs share count once."""
        states = {id(state): state for run in self._runs for state in run.states.values()}
        return sum(state.bytes for state in states.values())

    def _model_gone(self, model: weakref.ref) -> None:
        self._runs = [run for run in self._runs if run.model is not model]


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
