"""Step cache: predictions that are reused or extrapolated from earlier steps instead of computed.

A model call with guidance makes two predictions, cond and uncond. Both change slowly along a rectified flow, and their
difference more slowly still. So some steps compute cond alone and reuse the difference, and some compute nothing.

The step that a sigma is in decides what is computed. All calls of a solver within one step are treated alike (a call at
a step's end is in the next step), and so is a step that an adaptive solver repeats. What cannot be reused is computed.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..flow.sigma import same_sigma

ROUNDING = 1e-5  # of a fraction of the steps


class StepPlan(NamedTuple):
    """What a step computes.

    Fields: cond, False if it is extrapolated; uncond, False if it is made of cond and the stored difference.
    """

    cond: bool
    uncond: bool


@dataclass(frozen=True)
class StepCache:
    """Which predictions of a run are computed.

    Fields:
        every: one step in `every` is computed, >= 1; the others are extrapolated.
        uncond_every: one computed step in `uncond_every` computes uncond too, >= 1.
        warmup, tail: fractions of the steps in [0, 1] before and from which all is computed.
        order: of the extrapolation; 0 repeats the last prediction, 1 draws a line through the last two.
        meant_for: steps of a run that `every` and `warmup` are meant for, 0 for any. A shorter run has no larger gaps
            in sigma, as many warmup steps, and computes its last step.
    Raises: ValueError with the field, the value and what it must be.
    Source: Liu et al. 2025, "From reusing to forecasting: accelerating diffusion models with TaylorSeers", for the
        line.
    """

    every: int = 1
    uncond_every: int = 1
    warmup: float = 0.0
    tail: float = 1.0
    order: int = 1
    meant_for: int = 0

    def __post_init__(self) -> None:
        lowest = {"every": 1, "uncond_every": 1, "warmup": 0, "tail": 0, "order": 0, "meant_for": 0}
        for name, low in lowest.items():
            high = 1 if name in ("warmup", "tail", "order") else math.inf
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"StepCache: {name} is {getattr(self, name)}; it must be in [{low}, {high}]")

    @property
    def does_nothing(self) -> bool:
        """True if every prediction is computed."""
        return self.every == self.uncond_every == 1

    def plan(self, step: int, steps: int) -> StepPlan:
        """What step number `step` of `steps` computes. The first step computes all."""
        warmup = math.ceil(self.warmup * max(steps, self.meant_for) - ROUNDING)
        tail, every = self.tail * steps, self.every
        if self.meant_for:
            tail = min(tail, steps - 1)
            every = math.ceil(every * min(1.0, steps / self.meant_for))
        since = step - warmup
        in_full = since < 0 or step >= tail - ROUNDING
        cond = in_full or since % every == 0
        return StepPlan(cond, uncond=cond and (in_full or since // every % self.uncond_every == 0))

    def work(self, steps: int) -> float:
        """Fraction of a guided run's predictions that are computed, for one model call a step, evenly spaced."""
        plans = (self.plan(step, steps) for step in range(steps))
        return sum(plan.cond + plan.uncond for plan in plans) / (2 * steps)


@dataclass
class PredictionCount:
    """What a run computed, in predictions.

    Fields: cond and uncond, computed; extrapolated, cond that were not computed; reused, uncond that were not computed;
    without_cond and without_uncond, predictions that had none; out_of_range, how many of these because all its prompts
    have a range of steps without this one; other, what other nodes requested, all computed; ends_at, the last sigma of
    the schedule, above 0 for a part of a run whose other parts are not known.
    """

    predictions: int = 0
    cond: int = 0
    uncond: int = 0
    extrapolated: int = 0
    reused: int = 0
    without_cond: int = 0
    without_uncond: int = 0
    out_of_range: int = 0
    other: int = 0
    ends_at: float = 0.0

    @property
    def work(self) -> float:
        """Fraction that was computed of what a run without a step cache computes."""
        whole = 2 * self.predictions - self.without_cond - self.without_uncond + self.other
        return (self.cond + self.uncond + self.other) / whole if whole else 1.0


class Extrapolation:
    """A quantity at the last sigmas at which it was computed, two at most, and its extrapolation to lower sigmas."""

    def __init__(self, order: int):
        self.order = order
        self.points: list[tuple[float, Tensor]] = []

    def add(self, sigma: float, value: Tensor) -> None:
        """Add a computed value. Points at this sigma and below are dropped: the solver went back to a higher sigma."""
        higher = [point for point in self.points if point[0] > sigma and not same_sigma(point[0], sigma)]
        self.points = [*higher[-1:], (sigma, value)]

    def at(self, sigma: float) -> Tensor | None:
        """The value at a sigma; None if no value is stored at this sigma or above."""
        if not self.points or not (sigma <= self.points[-1][0] or same_sigma(sigma, self.points[-1][0])):
            return None
        last_sigma, last = self.points[-1]
        if self.order == 0 or len(self.points) < 2:
            return last
        first_sigma, first = self.points[0]
        # At most as far as the two points are apart: a line is no use further out.
        return last + (last - first) * min(1.0, (last_sigma - sigma) / (first_sigma - last_sigma))

    def to(self, device: torch.device | str) -> Extrapolation:
        """A copy with its values on a device, bit for bit."""
        copy = Extrapolation(self.order)
        copy.points = [(sigma, value.to(device)) for sigma, value in self.points]
        return copy


@dataclass
class _Stored:
    """What is stored of one kind of predictions: cond, cond - uncond, and the step that used them last."""

    cond: Extrapolation
    difference: Extrapolation
    step: int

    def to(self, device: torch.device | str) -> _Stored:
        """A copy with its values on a device."""
        return _Stored(self.cond.to(device), self.difference.to(device), self.step)


@dataclass(frozen=True)
class Prediction:
    """One prediction on its way: what is extrapolated, and what the model must compute.

    Fields: computes, whether the model is called at all; computes_uncond, whether for uncond too; the rest is for
    `StepCacheRun.finish`.
    """

    computes: bool
    computes_uncond: bool
    has_uncond: bool
    sigma: float
    cond: Tensor | None
    difference: Tensor | None
    stored: _Stored


class StepCacheRun:
    """The state of one sampling run under a step cache: stored predictions, and a count.

    A run in several parts, each with a state of its own, is the run in one piece if each part has the sigmas of all of
    them and the `stored` of the part before.

    Args: sigmas [steps + 1], the run's schedule. If it does not fall all is computed: an inversion must be exact.
    stored, of the part before, by kind; it becomes this run's own.
    """

    def __init__(
        self, step_cache: StepCache, sigmas: Sequence[float], stored: Mapping[Hashable, _Stored] | None = None
    ):
        falls = len(sigmas) > 1 and all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))
        self.step_cache = step_cache if falls else StepCache()
        self.sigmas = sigmas
        self.steps = max(1, len(sigmas) - 1)
        self.count = PredictionCount(ends_at=sigmas[-1] if falls else 0.0)
        self._kinds: dict[Hashable, _Stored] = dict(stored or {})

    @property
    def stored(self) -> dict[Hashable, _Stored]:
        """What the next part of the run needs, by kind; copies on the CPU."""
        return {kind: stored.to("cpu") for kind, stored in self._kinds.items()}

    def step_of(self, sigma: float) -> int:
        """The step that begins at a sigma or contains it."""
        begun = sum(sigma <= start or same_sigma(sigma, start) for start in self.sigmas)
        return min(max(0, begun - 1), self.steps - 1)

    def begin(self, sigma: float, *, has_uncond: bool = True, kind: Hashable = None) -> Prediction:
        """Begin a prediction; `finish` ends it.

        Args: sigma > 0; has_uncond, whether uncond is requested; kind, what the prediction is of (shape, active
            prompts, hooks): a prediction is extrapolated from those of its own kind alone; None if that is not known:
            everything is then computed.
        """
        step = self.step_of(sigma)
        stored = self._stored(kind, step)
        plan = self.step_cache.plan(step, self.steps)
        cond = None if plan.cond else stored.cond.at(sigma)
        difference = stored.difference.at(sigma) if has_uncond and not plan.uncond else None
        computes_uncond = has_uncond and difference is None
        computes = cond is None or computes_uncond
        count = self.count
        count.predictions += 1
        count.cond += computes
        count.extrapolated += not computes
        count.uncond += computes_uncond
        count.reused += difference is not None
        count.without_uncond += not has_uncond
        return Prediction(computes, computes_uncond, has_uncond, sigma, cond, difference, stored)

    def finish(
        self, prediction: Prediction, cond: Tensor | None = None, uncond: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """End a prediction.

        Args: cond and uncond [B, ...], velocities that the model computed, as far as `prediction` says.
        Returns: cond and uncond; uncond is None if it was not requested.
        """
        if prediction.computes and cond is not None:
            prediction.stored.cond.add(prediction.sigma, cond)
        else:
            cond = prediction.cond
        assert cond is not None
        if not prediction.has_uncond:
            return cond, None
        if prediction.difference is not None:
            return cond, cond - prediction.difference
        assert uncond is not None
        prediction.stored.difference.add(prediction.sigma, cond - uncond)
        return cond, uncond

    def _stored(self, kind: Hashable, step: int) -> _Stored:
        """What is stored of a kind. A kind that a whole step did not use is dropped."""
        self._kinds = {key: stored for key, stored in self._kinds.items() if stored.step >= step - 1}
        new = _Stored(Extrapolation(self.step_cache.order), Extrapolation(self.step_cache.order), step)
        stored = new if kind is None else self._kinds.setdefault(kind, new)
        stored.step = step
        return stored
