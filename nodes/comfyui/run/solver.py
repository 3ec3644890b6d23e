"""A solver of the core as a sampler of ComfyUI's: steps checked for NaN, predictions counted, states kept."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ....mmdit_core.solvers import SOLVERS, CallLimitError, History, Point, solve_with_history
from .. import patching
from ..fingerprint import fingerprint, of_model
from ..step_cache import Stored
from . import nan_check, parts
from .guidance import Guidance
from .resume import ResumeState
from .run_cache import RunCache

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSteps:
    """The steps of a run.

    Fields: solver; sigmas [steps + 1], float64 on the CPU, falling; guidance; seeds of the noise of stochastic steps,
    one for all images or one for each; options of the solver; zero_steps, in how many of the first steps the velocity
    is zero; start, the earlier run that this one continues; rest, the sigmas of the schedule after these steps.
    """

    solver: str
    sigmas: Tensor
    guidance: Guidance
    seeds: tuple[int, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    zero_steps: int = 0
    start: ResumeState | None = None
    rest: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """The number of steps."""
        return len(self.sigmas) - 1

    @property
    def is_adaptive(self) -> bool:
        """True if the solver chooses its own steps."""
        return SOLVERS[self.solver].adaptive

    @property
    def history(self) -> History:
        """What the solver continues from."""
        return () if self.start is None else self.start.history

    @cached_property
    def whole(self) -> Tensor:
        """The sigmas of the run in one piece: of the earlier run, of these steps, and of those that are left."""
        before = () if self.start is None else self.start.schedule[:-1]
        return torch.tensor([*before, *self.sigmas.tolist(), *self.rest], dtype=torch.float64)

    @cached_property
    def segments(self) -> tuple[tuple[int, int], ...]:
        """Ranges of steps that are solved in one call: single steps, but all steps of an adaptive solver."""
        cuts = sorted({0, min(self.zero_steps, self.count), self.count})
        cuts = cuts if self.is_adaptive else list(range(self.count + 1))
        return tuple(zip(cuts, cuts[1:], strict=False))

    @property
    def all_evaluated(self) -> tuple[float, ...] | None:
        """The sigmas at which the model is called, in order; None if the solver is adaptive."""
        return None if self.evaluated is None else tuple(sigma for sigmas in self.evaluated for sigma in sigmas)

    @cached_property
    def evaluated(self) -> tuple[tuple[float, ...], ...] | None:
        """The same for each segment."""
        if self.is_adaptive:
            return None
        found: list[tuple[float, ...]] = []
        history = tuple(Point(point.sigma, torch.zeros(1, 1), torch.zeros(1, 1)) for point in self.history)
        for a, b in self.segments:
            sigmas: list[float] = []

            def velocity(x: Tensor, sigma: Tensor, sigmas: list[float] = sigmas) -> Tensor:
                sigmas.append(float(sigma))
                return torch.zeros_like(x)

            grid, source = self.sigmas[a : b + 1], torch.Generator()
            _, history = solve_with_history(
                velocity, torch.zeros(1, 1), grid, self.solver, None, source, history, **self.options
            )
            found.append(() if b <= self.zero_steps else tuple(sigmas))
        return tuple(found)


@dataclass(frozen=True)
class RunState:
    """A run between two segments; generators: their states."""

    x: Tensor
    history: History = ()
    generators: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str) -> RunState:
        """The same state, bit for bit, on another device."""
        points = (replace(p, x=p.x.to(device), velocity=p.velocity.to(device)) for p in self.history)
        return replace(self, x=self.x.to(device), history=tuple(points))

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        return self.x.nbytes + sum(p.x.nbytes + p.velocity.nbytes for p in self.history)


class SolverRun:
    """One run of a solver, as a sampler function that ComfyUI calls; afterwards it holds what was done.

    Attributes: seconds of each segment that ran; reused, the number of steps taken from the run cache; predictions,
    made in this run, and without_negative, those without the uncond prediction; evaluated, all sigmas at which the
    model is called, for `patching.Run`; counts, that Run; end, the state after the last step, on the CPU; stored
    predictions of the step cache there.
    """

    def __init__(self, steps: RunSteps, cache: RunCache | None = None, node: str = ""):
        """Args: cache, opened for this run; node, whose name an error has if a value is not finite; "": not checked."""
        self.steps, self.cache, self.node = steps, cache or RunCache(), node
        self.evaluated = steps.all_evaluated
        self.seconds: list[float] = []
        self.reused = self.predictions = self.without_negative = 0
        self.counts: patching.Run | None = None
        self.end: RunState | None = None
        self.stored: Stored = {}

    def __call__(self, model, x: Tensor, sigmas, extra_args: dict[str, Any], callback, disable=None) -> Tensor:
        """Run the steps. Args: as ComfyUI calls a sampler; x [B, ...], noise and image mixed. Returns: x at the end."""
        steps, segments, velocity = self.steps, self.steps.segments, _Velocity(self, model, extra_args, x)
        parts.begin(steps, model, velocity.options, self.counts, x)
        first, state = self._start(x)
        self.reused = segments[first - 1][1] if first else 0
        log.debug("%s: %d steps, %d of them from the run cache", steps.solver, steps.count, self.reused)
        generators = _generators(steps.seeds, state.generators)
        for index, (a, b) in enumerate(segments[first:], first):
            self.cache.keep(index, state)
            began = time.perf_counter()
            velocity.begin(index)
            try:
                end, history = solve_with_history(
                    velocity,
                    state.x,
                    steps.sigmas[a : b + 1],
                    steps.solver,
                    partial(_report, callback, a),
                    generators[0] if len(generators) == 1 else generators,
                    state.history,
                    **steps.options,
                )
                if self.node and not nan_check.is_finite(end):
                    raise _NotFinite
            except CallLimitError as error:
                raise ValueError(f"{self.node}: tolerance: set it higher: {error}") from error
            except _NotFinite:
                where = f"step {b}" if b == a + 1 else f"a step after step {a}"
                where = f"{self.node}: {where} of {steps.count} (sigma {float(steps.sigmas[a]):.4g})"
                raise velocity.not_finite(where) from None
            state = RunState(end, history, tuple(generator.get_state() for generator in generators))
            self.seconds.append(time.perf_counter() - began)
        self.cache.keep(len(segments), state)
        self.end = state.to("cpu")
        self.stored = parts.stored(steps, model, self.counts)
        return state.x

    def resume_state(self, model, samples: Tensor, noise: Tensor, image: Tensor, mask: Any) -> ResumeState | None:
        """What another sampler needs to continue this run; None if it ended at sigma 0.

        Args: model, as it came into the node; samples, as they go out; noise and image that the run began with; mask,
        the LATENT's noise mask.
        """
        steps, sigma, end = self.steps, float(self.steps.sigmas[-1]), self.end
        if sigma == 0 or end is None:
            return None
        return ResumeState(
            samples.cpu(),
            sigma,
            end.x,
            noise,
            image,
            steps.solver,
            end.history,
            steps.seeds,
            end.generators,
            mask=fingerprint(mask),
            schedule=tuple(steps.whole.tolist())[: len(steps.whole) - len(steps.rest)],
            stored=self.stored,
            stored_of=of_model(model) if self.stored else None,
        )

    def _start(self, x: Tensor) -> tuple[int, RunState]:
        """The first segment to run, and the state before it. x: noise and image, mixed by ComfyUI."""
        found = self.cache.latest()
        if found is not None:
            return found[0], found[1].to(x.device)
        start = self.steps.start
        if start is None:
            return 0, RunState(x)
        states = start.states if start.seeds == self.steps.seeds else ()
        return 0, RunState(start.x, self.steps.history, states).to(x.device)


class _NotFinite(Exception):
    """A value is NaN or infinite; the message is made where the step is known."""


class _Velocity:
    """ComfyUI's model, which predicts denoised latents, as the velocity that solvers take.

    model is ComfyUI's inpainting model around its guider.
    """

    def __init__(self, run: SolverRun, model, extra_args: dict[str, Any], like: Tensor):
        self.run, self.model, self.extra_args = run, model, extra_args
        self.guider = model.inner_model
        self.options: dict[str, Any] = extra_args.get("model_options", {})
        to_sigma = self.guider.inner_model.model_sampling.percent_to_sigma
        self.scale = partial(run.steps.guidance.scale, percent_to_sigma=to_sigma)
        self.rows = like.new_ones(like.shape[0])
        self.check = bool(run.node) and run.steps.is_adaptive
        self.calls: list[nan_check.Call] = []
        self.sigmas: Sequence[float] | None = None  # of the segment, where they are known before
        self.is_zero = False
        run.counts = patching.run_of(self.options.get("transformer_options", {}))

    def begin(self, segment: int) -> None:
        steps = self.run.steps
        self.calls, self.is_zero = [], steps.segments[segment][1] <= steps.zero_steps
        self.sigmas = None if steps.evaluated is None else steps.evaluated[segment]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        # ComfyUI checks for a cancel in its own layers only.
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.is_zero:
            return torch.zeros_like(x)
        # Read from the schedule where that is possible: reading `sigma` would wait for the device.
        level = float(sigma) if self.sigmas is None else self.sigmas[len(self.calls)]
        run = self.run
        self._set_sigma(level)
        run.predictions += 1
        # At cfg 1 ComfyUI leaves out the uncond prediction.
        computes_both = self.options.get("disable_cfg1_optimization", False) or not math.isclose(self.guider.cfg, 1)
        run.without_negative += not computes_both
        velocity = (x - self.model(x, sigma * self.rows, **self.extra_args)) / sigma
        if self.check:  # one segment of many calls; it waits for the device after each of them anyway
            self.calls.clear()
        self.calls.append(nan_check.Call(x, sigma, velocity))
        if self.check and not nan_check.is_finite(velocity):
            raise _NotFinite
        return velocity

    def _set_sigma(self, sigma: float) -> None:
        self.guider.set_cfg(self.scale(sigma))
        if self.run.counts is not None:
            self.run.counts.sigma = sigma

    def not_finite(self, where: str) -> nan_check.NotFiniteError:
        """The error of the current segment. The model call with the first bad value is made again to find its block."""

        def again(call: nan_check.Call, model_options: dict[str, Any]) -> None:
            self._set_sigma(float(call.sigma))
            self.model(call.x, call.sigma * self.rows, **{**self.extra_args, "model_options": model_options})

        return nan_check.error(where, self.calls, again, self.options, self.guider.inner_model)


def _generators(seeds: Sequence[int], states: Sequence[Tensor]) -> list[torch.Generator]:
    """On the CPU, for the same image on every machine."""
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    for generator, state in zip(made, states, strict=False):
        generator.set_state(state)
    return made


def _report(callback, first: int, step: int, steps: int, x: Tensor, denoised: Tensor, sigma: Tensor) -> None:
    """Call ComfyUI's callback with the step of the whole run. Args: first, the step at which the segment begins."""
    callback({"i": first + step, "x": x, "denoised": denoised, "sigma": sigma, "sigma_hat": sigma})
