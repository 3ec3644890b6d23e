"""A solver of the core run step by step inside the host's sampler: watched, kept, split and taken up again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....mmdit_core.solvers import SOLVERS, CallLimitError, History, solve_with_history
from . import nan_check as guard
from .resume import Unfinished
from .run_cache import Kept


@dataclass(frozen=True)
class Route:
    """What a run follows.

    levels [steps + 1], float64 on the CPU, falling; options: the solver's; resting: in how many of the first steps the
    velocity is zero; seeds: of the noise of stochastic steps, one for all pictures or one for each; start: the earlier
    run that this one goes on from.
    """

    solver: str
    levels: Tensor
    seeds: tuple[int, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    resting: int = 0
    start: Unfinished | None = None

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    @property
    def is_adaptive(self) -> bool:
        return SOLVERS[self.solver].adaptive

    @cached_property
    def pieces(self) -> tuple[tuple[int, int], ...]:
        """The steps, as indices of levels; of a solver that chooses its own steps, all that it does at one go."""
        cuts = sorted({0, min(self.resting, self.steps), self.steps}) if self.is_adaptive else range(self.steps + 1)
        return tuple(zip(cuts, cuts[1:], strict=False))

    def asked(self, a: int, b: int) -> list[float]:
        """The noise levels at which a solver that is not adaptive asks the model between two of its levels."""
        if b <= self.resting:
            return []
        seen: list[float] = []

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(float(sigma))
            return torch.zeros_like(x)

        levels, source = self.levels[a : b + 1], torch.Generator()
        solve_with_history(velocity, torch.zeros(1, 1), levels, self.solver, generator=source, **self.options)
        return seen


@dataclass(frozen=True)
class State:
    """Where a run stands between two pieces; generators: their states."""

    x: Tensor
    history: History = ()
    generators: tuple[Tensor, ...] = ()

    def on(self, device: torch.device | str) -> State:
        """The same, bit for bit, on another device."""
        points = (replace(p, x=p.x.to(device), velocity=p.velocity.to(device)) for p in self.history)
        return replace(self, x=self.x.to(device), history=tuple(points))

    @property
    def bytes(self) -> int:
        return self.x.nbytes + sum(p.x.nbytes + p.velocity.nbytes for p in self.history)


class Walk:
    """One run along a route: a sampler function as the host calls them, which remembers how it went.

    seconds: of each piece that ran; reused: steps that an earlier run had made; end: where the run stands, on the CPU.
    """

    def __init__(self, route: Route, kept: Kept | None = None, guarded_by: str = ""):
        """Args: kept, opened for this run: what it holds is not run again; guarded_by, a node's name: where it is
        given, the first value that is not finite ends the run, with an error in that node's name."""
        self.route, self.kept, self.guarded_by = route, kept, guarded_by
        self.seconds: list[float] = []
        self.reused = 0
        self.end: State | None = None

    def __call__(self, model, x: Tensor, sigmas, extra_args=None, callback=None, disable=None) -> Tensor:
        route, pieces = self.route, self.route.pieces
        predictions = _Predictions(model, extra_args or {}, x, check=bool(self.guarded_by) and route.is_adaptive)
        first, state = self._start(x)
        self.reused = pieces[first - 1][1] if first else 0
        generators = _generators(route.seeds, state.generators)
        for number, (a, b) in enumerate(pieces[first:], first):
            self._keep(number, state)
            began = time.perf_counter()
            predictions.begin(resting=b <= route.resting)
            try:
                end, history = solve_with_history(
                    predictions.velocity,
                    state.x,
                    route.levels[a : b + 1],
                    route.solver,
                    _report(callback, a),
                    generators[0] if len(generators) == 1 else generators,
                    state.history,
                    **route.options,
                )
                if self.guarded_by and not guard.is_finite(end):
                    raise _NotFinite
            except CallLimitError as error:
                raise ValueError(f"{self.guarded_by}: tolerance: set it higher: {error}") from error
            except _NotFinite:
                raise guard.NotFiniteError(self._what_went_wrong(predictions, a, b)) from None
            state = State(end, history, tuple(generator.get_state() for generator in generators))
            self.seconds.append(time.perf_counter() - began)
        self._keep(len(pieces), state)
        self.end = state.on("cpu")
        return state.x

    def _start(self, x: Tensor) -> tuple[int, State]:
        """The first piece to run, and where it begins. x: the noise and the picture, mixed by the host."""
        if self.kept is not None and (found := self.kept.latest()) is not None:
            return found[0], found[1].on(x.device)
        start = self.route.start
        if start is None:
            return 0, State(x)
        history = start.history if start.solver == self.route.solver else ()
        states = start.states if start.seeds == self.route.seeds else ()
        return 0, State(start.x, history, states).on(x.device)

    def _keep(self, number: int, state: State) -> None:
        if self.kept is not None:
            self.kept.keep(number, lambda: state.on("cpu"), state.bytes)

    def _what_went_wrong(self, predictions: _Predictions, a: int, b: int) -> str:
        steps = f"step {b}" if b == a + 1 else f"a step after step {a}"
        level = f"sigma {float(self.route.levels[a]):.4g}"
        return (
            f"{self.guarded_by}: {steps} of {self.route.steps} ({level}) gives a value that is not finite: "
            f"{predictions.explain()}. {guard.REMEDY}"
        )


class _NotFinite(Exception):
    """Seen at once; explained where it is known which step it was."""


class _Predictions:
    """The host's model, which predicts denoised latents, as the velocity that solvers take; the calls of one piece."""

    def __init__(self, model, extra_args: dict[str, Any], like: Tensor, check: bool):
        self.model, self.extra_args, self.check = model, extra_args, check
        self.rows = like.new_ones(like.shape[0])
        self.calls: list[guard.Call] = []
        self.resting = False

    def begin(self, resting: bool) -> None:
        self.calls, self.resting = [], resting

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        # A model whose layers are not the host's would never look at the cancel button.
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.resting:
            return torch.zeros_like(x)
        velocity = (x - self.model(x, sigma * self.rows, **self.extra_args)) / sigma
        if self.check:  # one run of many calls, which waits for the device after each of them anyway
            self.calls.clear()
        self.calls.append(guard.Call(x, sigma, velocity))
        if self.check and not guard.is_finite(velocity):
            raise _NotFinite
        return velocity

    def explain(self) -> str:
        def again(call: guard.Call, model_options: dict[str, Any]) -> None:
            self.model(call.x, call.sigma * self.rows, **{**self.extra_args, "model_options": model_options})

        base = self.model.inner_model.inner_model  # the host's model, in its guider, in its inpainting
        return guard.explain(self.calls, again, self.extra_args.get("model_options", {}), base)


def _generators(seeds: Sequence[int], states: Sequence[Tensor]) -> list[torch.Generator]:
    """On the CPU, for the same picture on every machine."""
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator, state in zip(made, states, strict=False):
        generator.set_state(state)
    return made


def _report(callback, first: int):
    """The host's callback, told the step of the whole run."""
    if callback is None:
        return None

    def report(step: int, steps: int, x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
        callback({"i": first + step, "x": x, "denoised": denoised, "sigma": sigma, "sigma_hat": sigma})

    return report
